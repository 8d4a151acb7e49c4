"""What an arm is: one way to do the work, and how its code is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.autograd import generated_reads, keys, own_logits_reads
from attnres_passes.torch_private import inner_compilers
from attnres_passes.torch_private.recompute import mark_for_recompute

from ..traffic import ArmTraffic
from ..work import Inputs

KERNELS, TORCH, PEER = "kernels", "torch", "peer"
INDUCTOR, EAGER = "inductor", "eager"

Call = Callable[[Inputs, list[Tensor]], list[Tensor]]


def nothing(_inputs: Inputs) -> list[Tensor]:
    """No work of earlier blocks."""
    return []


@dataclass(frozen=True)
class Arm:
    """One way to do the work."""

    name: str
    kind: str
    """KERNELS, TORCH or PEER."""
    traffic: ArmTraffic
    """What it is charged with."""
    call: Call | None = None
    """From the inputs and what ``prepare`` made to the outputs of ``definition``, and behind them the completed block's
    logits where the form makes them.
    """
    prepare: Callable[[Inputs], list[Tensor]] = nothing
    """What a model has from earlier blocks; not timed."""
    note: str = ""
    """What it leaves out, or does otherwise."""
    unsupported: str = ""
    """Why it cannot do this work."""
    same_as: str = ""
    """The arm that it is identical with here."""


def compiled(function: Callable[..., Any], inner: str) -> Callable[..., Any]:
    """A function under the inner compiler of a model, in one graph of fixed shapes, phase 1 marked as in a model.

    Args:
        function: of tensors.
        inner: INDUCTOR, EAGER or another name of ``AttnResConfig.inner``.
    """
    if inner == EAGER:
        return function
    for of_kernels in _KERNEL_CALLS:
        # One node each, as in a lowered graph; without this, Dynamo would look into their autograd functions.
        torch.compiler.allow_in_graph(of_kernels)  # type: ignore[no-untyped-call]

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        for node in gm.graph.nodes:
            if node.target is generated_reads.phase_1:
                mark_for_recompute(node)
        return inner_compilers.compile_inner(gm, inputs, inner, None)

    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


_KERNEL_CALLS: tuple[Callable[..., Any], ...] = (
    keys.key_matrix,
    generated_reads.source_logits,
    generated_reads.complete_block,
    generated_reads.link_sources,
    generated_reads.phase_1,
    generated_reads.read,
    own_logits_reads.own_logits_read,
)
