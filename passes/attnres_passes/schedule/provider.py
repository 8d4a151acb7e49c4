"""Which provider the reads of a graph are bound to, and why: torch calls, or generated Triton kernels."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from enum import Enum

from torch.fx import GraphModule

from attnres_kernels.launch import own_logits_tiling, rows, tiling
from attnres_kernels.launch.load_triton import is_interpreted
from attnres_passes.ir.config import ConfigError
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.plan import Plan
from attnres_passes.torch_private.example_values import example_value

KERNELS_VARIABLE = "ATTNRES_KERNELS"


class Provider(Enum):
    """TORCH is plain torch, which the inner compiler fuses with the neighbours; TRITON is generated kernels."""

    TORCH = "torch"
    TRITON = "triton"


@dataclass(frozen=True)
class ProviderChoice:
    """What the reads of a graph are bound to.

    why: in words, for logs and dumps; most_in_place: completed blocks that a read may take in place; differentiates:
    gradients may be wanted.
    """

    provider: Provider
    why: str
    most_in_place: int
    differentiates: bool

    @classmethod
    def of(cls, plan: Plan, provider: Provider, why: str = "", differentiates: bool = True) -> ProviderChoice:
        """The choice of a provider for all streams of a plan.

        Args:
            plan: of the whole model.
            provider: what reads are bound to.
            why: in words.
            differentiates: gradients may be wanted.
        """
        width = max((stream.width for stream in plan.streams), default=0)
        return cls(provider, why, tiling.most_in_place(width), differentiates)

    @property
    def most_with_own_logits(self) -> int:
        """Completed blocks up to which a read may make its own logits, beside an open partial sum."""
        return 0 if self.differentiates else own_logits_tiling.MOST_SOURCES - 1


def choose_provider(rewritten: GraphModule, plan: Plan, differentiates: bool = True) -> ProviderChoice:
    """Kernels for streams on a GPU that they can hold, else torch; ATTNRES_KERNELS=triton or torch overrides.

    Args:
        rewritten: whose reads say on which device and in which dtype the streams are.
        plan: of the whole model.
        differentiates: gradients may be wanted of the graph.

    Raises:
        ConfigError: the variable asks for what cannot be.
    """
    asked = os.environ.get(KERNELS_VARIABLE, "")
    if asked not in ("", *(x.value for x in Provider)):
        raise ConfigError(
            f"{KERNELS_VARIABLE}={asked!r} is neither 'triton' nor 'torch'; set one of them, or unset it."
        )
    missing = _missing(rewritten, plan)
    if asked == Provider.TORCH.value:
        why = missing if plan.config.mechanism.by_definition else f"{KERNELS_VARIABLE}=torch"
        return ProviderChoice.of(plan, Provider.TORCH, why, differentiates)
    if asked and missing:
        raise ConfigError(f"{KERNELS_VARIABLE}=triton, but {missing}; unset it, or set it to 'torch'.")
    if missing:
        return ProviderChoice.of(plan, Provider.TORCH, missing, differentiates)
    why = f"{KERNELS_VARIABLE}=triton" if asked else "the streams are on a GPU"
    if not any(map(is_depth_attention, rewritten.graph.nodes)):
        why = "no read is here to bind"
    return ProviderChoice.of(plan, Provider.TRITON, why, differentiates)


def _missing(rewritten: GraphModule, plan: Plan) -> str:
    """What the kernels need and do not have; '' if nothing."""
    if plan.config.by_definition:
        variant = plan.config.mechanism.by_definition
        return f"the definition in torch, {variant}" if variant else "schedule='naive' is the definition in torch"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    width = max((stream.width for stream in plan.streams), default=0)
    if width > tiling.WIDEST:
        return f"a stream is {width} wide, and the kernels hold rows of at most {tiling.WIDEST}"
    for node in rewritten.graph.nodes:
        if is_depth_attention(node):
            value = example_value(node)
            if value is None:
                return "the graph does not say where its streams are"
            if value.dtype not in rows.DTYPES:
                return f"a stream is {str(value.dtype).removeprefix('torch.')}, and the kernels compute in fp32"
            if value.device.type != "cuda" and not (value.device.type == "cpu" and is_interpreted()):
                return f"a stream is on {value.device.type}"
            if value.device.type == "cpu" and os.environ.get(KERNELS_VARIABLE) != Provider.TRITON.value:
                return "a stream is on cpu"
    return ""
