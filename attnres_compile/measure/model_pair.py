"""What every comparison compares: the plain compiled model, and a copy of it compiled with AttnRes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from attnres_compile.api.prepare import prepare, unprepare
from attnres_compile.model.parameters import parameters_of
from attnres_compile.report.comparison import MeasureError
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan

PLAIN, ATTNRES = "plain", "attnres"


@dataclass(frozen=True)
class ModelPair:
    """Two copies of one model. Neither shares parameters with the other or with the original."""

    plain: nn.Module
    attnres: nn.Module
    plan: Plan


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without AttnRes, not compiled."""
    copied = copy.deepcopy(model)
    if parameters_of(copied) is not None:
        unprepare(copied)
    return copied


def prepared_pair(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], config: AttnResConfig
) -> ModelPair:
    """A plain and a prepared copy of ``model``, neither compiled; ``model`` is not touched.

    Args:
        model: plain or prepared.
        args: of the call that ``attnres_compile.prepare`` analyses; what it raises is raised.
        kwargs: of that call.
        config: of the rewrite.
    """
    plain, attnres = plain_copy(model), plain_copy(model)
    return ModelPair(plain, attnres, prepare(attnres, args, kwargs, config=config))


def compile_pair(pair: ModelPair, mode: str | None = None) -> None:
    """Compile both in place by one inner compiler, which happens at the first call of each.

    Args:
        pair: as ``prepared_pair`` made it.
        mode: of Inductor, for both.
    """
    pair.plain.compile(backend=pair.plan.config.inner, mode=mode)
    pair.attnres.compile(backend="attnres", mode=mode)


def model_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_training: bool
) -> Callable[[], None]:
    """Put a model in its mode; the returned call runs one forward without gradients, or one training step.

    Args:
        model: plain or prepared, compiled or not.
        args: of each call.
        kwargs: of each call; for training with labels, where the model computes its own loss from them.
        is_training: forward and backward, from gradients of None.
    """
    model.train(is_training)

    def forward() -> None:
        with torch.no_grad():
            model(*args, **kwargs)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        _scalar_loss(model(*args, **kwargs)).backward()  # type: ignore[no-untyped-call]

    return step if is_training else forward


def _scalar_loss(output: Any) -> torch.Tensor:
    """The model's own loss, or the mean square of its first floating output.

    Raises MeasureError if the output holds no floating tensor.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor):
        return own
    tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if first is None:
        raise MeasureError(
            f"the model returns no floating tensor ({type(output).__name__}), so there is nothing to train: "
            "wrap it in a module that returns a loss"
        )
    return first.float().square().mean()


def switch_dropout_off(model: nn.Module) -> None:
    """Set every dropout probability of ``model`` to zero, in place: of modules and of plain attributes."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
