"""Tensors that are spread over ranks as torch's DTensor holds them: how, what of one is here, and gradients of them.

Loads torch.distributed.tensor where it is there already: without it nobody has such a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
from torch import Tensor

from attnres_passes.torch_private.collectives import all_reduce

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

Part = int | Literal["whole", "partial"]
"""What ranks hold: all the same, a summand each, or a part each along a dimension."""


@dataclass(frozen=True)
class Placed:
    """How a tensor is spread over a mesh of ranks. groups, parts: name of the group, and what is held, per dimension
    of the mesh.
    """

    groups: tuple[str, ...]
    parts: tuple[Part, ...]


def is_spread(value: Any) -> TypeGuard[DTensor]:
    """Whether a value is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def placed(value: Any) -> Placed | None:
    """How a value is spread over ranks; None for what is no DTensor."""
    if not is_spread(value):
        return None
    mesh = value.device_mesh
    groups = tuple(mesh.get_group(dimension).group_name for dimension in range(len(value.placements)))
    return Placed(groups, tuple(map(_part, value.placements)))


def _part(placement: Placement) -> Part:
    if placement.is_replicate():
        return "whole"
    return "partial" if placement.is_partial() else int(placement.dim)  # type: ignore[attr-defined]


def held(value: DTensor) -> Tensor:
    """The very tensor that this rank holds of another, with nothing recorded."""
    part: Tensor = value._local_tensor
    return part


def everywhere(value: Tensor) -> Tensor:
    """The whole of a DTensor, for which every rank has to ask; any other tensor is given back."""
    whole: Tensor = value.full_tensor() if is_spread(value) else value
    return whole


def read_parts(state: Tensor) -> tuple[Part, ...]:
    """What of a state, and of its sources, a read takes: all features of the sum of all ranks; () if it is no DTensor.

    Args:
        state: ``[.., d]``.
    """
    spread = placed(state)
    parts = () if spread is None else spread.parts
    return tuple("whole" if part in ("partial", state.dim() - 1) else part for part in parts)


def cut_over(state: Tensor) -> tuple[str, ...]:
    """Names of the groups of ranks that hold different tokens of a state; () if it is no DTensor.

    Args:
        state: ``[.., d]``.
    """
    spread = placed(state)
    if spread is None:
        return ()
    pairs = zip(spread.groups, read_parts(state), strict=True)
    return tuple(group for group, part in pairs if isinstance(part, int))


def local_part(value: Tensor, parts: Sequence[Part]) -> Tensor:
    """What this rank holds of a tensor that is spread in some way; gradients come back spread in that way.

    Args:
        value: a DTensor, which is spread anew if it is spread in another way; any other tensor is given back.
        parts: per dimension of its mesh; none is "partial".
    """
    if not is_spread(value):
        return value
    wanted = _placements(parts)
    spread = value if tuple(value.placements) == wanted else value.redistribute(placements=wanted)
    part: Tensor = spread.to_local()
    return part


def like_state(source: Tensor, state: Tensor) -> Tensor:
    """A source as graphs take it: contiguous, and spread over ranks as the state is.

    Args:
        source: of the state.
        state: that is between two graphs.
    """
    if is_spread(source) and is_spread(state) and source.placements != state.placements:
        source = source.redistribute(placements=state.placements)
    return source.contiguous()


def spread_like(part: Tensor, other: Tensor, parts: Sequence[Part]) -> Tensor:
    """The DTensor that this rank holds a part of.

    Args:
        part: of this rank.
        other: of the shape of the whole, on the same mesh; if it is no DTensor, the part is given back.
        parts: what the part is, per dimension of the mesh; none is "partial".
    """
    if not is_spread(other):
        return part
    stride: list[Any] = [1]
    for size in reversed(other.shape[1:]):
        stride.append(stride[-1] * size)
    made: Tensor = type(other).from_local(
        part,
        other.device_mesh,
        _placements(parts),
        run_check=False,
        shape=other.shape,
        stride=tuple(reversed(stride)),
    )
    return made


def _placements(parts: Sequence[Part]) -> tuple[Placement, ...]:
    from torch.distributed.tensor import Replicate, Shard

    return tuple(Shard(part) if isinstance(part, int) else Replicate() for part in parts)


class _Arrived(torch.autograd.Function):
    """Gives what a collective has sent, once it is there; the gradient goes back as it is."""

    @staticmethod
    def forward(ctx: Any, value: Any) -> Tensor:
        whole: Tensor = value.trigger_wait()
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def arrived(value: Any) -> Any:
    """What a graph is given for a value that may still be on its way from other ranks: the plain tensor.

    A layer that Python runs before it, such as an embedding that is split by vocabulary, gives such a value. Compiled
    by AOTAutograd, a graph sends no gradient back through it (torch 2.13).

    Args:
        value: an input of a graph.
    """
    module = sys.modules.get("torch.distributed._functional_collectives")
    if module is None or not isinstance(value, module.AsyncCollectiveTensor):
        return value
    return _Arrived.apply(value)  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """Gives tensors as they are; their gradients are summed over groups of ranks, one after the other."""

    @staticmethod
    def forward(ctx: Any, groups: tuple[str, ...], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.groups = groups
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        given = [gradient for gradient, is_wanted in zip(gradients, wanted, strict=True) if is_wanted]
        flat = torch.cat([gradient.reshape(-1) for gradient in given])
        for group in ctx.groups:
            flat = all_reduce(flat, group)
        parts = iter(torch.split(flat, [gradient.numel() for gradient in given]))
        summed = [
            next(parts).view_as(gradient).to(gradient.dtype) if is_wanted else None
            for gradient, is_wanted in zip(gradients, wanted, strict=True)
        ]
        return (None, *summed)


def on_own_tokens(values: Sequence[Tensor], groups: tuple[str, ...]) -> list[Tensor]:
    """Parameters as tensors that every rank uses on tokens of its own; their gradients are those of all tokens.

    Args:
        values: that all ranks have whole: tensors, or DTensors.
        groups: names of the groups of ranks over which the tokens are cut; none where all ranks have all tokens.
    """
    own = [_whole(value, groups) if is_spread(value) else value for value in values]
    # A DTensor has its gradients summed over its own mesh.
    left = {k: _without(groups, placed(value)) for k, value in enumerate(values)}
    for of_groups in dict.fromkeys(rest for rest in left.values() if rest):
        places = [k for k, rest in left.items() if rest == of_groups]
        if not (torch.is_grad_enabled() and any(own[k].requires_grad for k in places)):
            continue
        summed: tuple[Tensor, ...] = _Summed.apply(of_groups, *(own[k] for k in places))  # type: ignore[no-untyped-call]
        for k, value in zip(places, summed, strict=True):
            own[k] = value
    return own


def _without(groups: tuple[str, ...], spread: Placed | None) -> tuple[str, ...]:
    return groups if spread is None else tuple(group for group in groups if group not in spread.groups)


def _whole(value: DTensor, groups: tuple[str, ...]) -> Tensor:
    from torch.distributed.tensor import Partial, Replicate

    spread = placed(value)
    assert spread is not None
    if any(part != "whole" for part in spread.parts):
        value = value.redistribute(placements=[Replicate()] * len(spread.parts))
    whole: Tensor = value.to_local(
        grad_placements=[Partial() if group in groups else Replicate() for group in spread.groups]
    )
    return whole
