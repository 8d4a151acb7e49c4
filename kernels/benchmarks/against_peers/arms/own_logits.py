"""Arms whose reads make their own logits: one launch for each read.

At op level that is a read on its own. At block level it is what the pass ``schedule`` takes where nothing is
differentiated and tokens are few; how many are few, these arms beside the others say.
"""

from __future__ import annotations

from torch import Tensor

from attnres_kernels.autograd import own
from attnres_kernels.generation.moved import of_own_read, of_own_read_backward
from attnres_kernels.generation.specs import NormKind, ReadSpec
from attnres_kernels.launch import own_tiling

from ..counted_bytes import Moved
from ..work import BLOCK, EPS, Inputs, Shape

_ADD = 3
"""What an addition of its own moves, in units of ``[T, d]``."""


def most_sources(shape: Shape) -> int:
    """Sources, the open partial sum among them, of a read of this shape, at most: its backward holds no more."""
    norm: NormKind | None = "rms" if shape.level == BLOCK else None
    return own_tiling.most_sources(shape.width, norm)


def moved_by_own_reads(shape: Shape) -> Moved:
    """What the reads of a shape move on kernels that make the logits themselves.

    At block level the addition behind the last read is one of its own, whose backward moves nothing; each source gets
    a gradient from every read, and each but the first is added to the sum of those before; the branch that is the
    second read's partial sum gets two.
    """
    specs = [_spec(shape, number) for number in range(shape.reads)]
    forward = sum(of_own_read(own_tiling.forward_spec(spec, shape.width)).total for spec in specs)
    backward = sum(_backward(shape, spec) for spec in specs)
    if shape.level != BLOCK:
        return Moved(forward, backward)
    return Moved(forward + _ADD, backward + _ADD * (shape.sources * (shape.reads - 1) + (shape.reads > 2)))


def _spec(shape: Shape, number: int) -> ReadSpec:
    if shape.level != BLOCK:
        return ReadSpec(shape.sources, has_inter=False)
    has_partial, adds = number > 0, number > 1
    return ReadSpec(shape.sources, False, has_partial, adds, "rms", has_weight=True, returns_value=False)


def _backward(shape: Shape, spec: ReadSpec) -> int:
    is_block = shape.level == BLOCK
    back = own_tiling.backward_spec(spec, shape.width, not is_block, is_block, spec.adds)
    return of_own_read_backward(back).total


def own_op(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
    """One read.

    Args:
        inputs: of the work.
        _: nothing, as no logits are given.
    """
    partial, query, key_weight = inputs.branches[0], inputs.queries[0], inputs.key_weights[0]
    return list(own.own_read(inputs.sources, partial, query, key_weight, 1.0, EPS))


def own_block(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
    """All reads of a block, each with the add before it and the norm behind it.

    Args:
        inputs: of the work.
        _: nothing, as no logits are given.
    """
    normed: list[Tensor] = []
    partial: Tensor | None = None
    for number, norm_weight in enumerate(inputs.norm_weights):
        branch = inputs.branches[number - 1] if number > 1 else None
        partial = inputs.branches[0] if number == 1 else partial
        key = inputs.queries[number], inputs.key_weights[number]
        value, *summed = own.own_read(
            inputs.sources, partial, *key, 1.0, EPS, branch, "rms", EPS, norm_weight, returns_value=False
        )
        normed.append(value)
        partial = summed[0] if summed else partial
    assert partial is not None
    return [*normed, partial + inputs.branches[-1]]
