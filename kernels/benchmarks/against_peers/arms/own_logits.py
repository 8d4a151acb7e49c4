"""Arms of ``python -m kernels.benchmarks peers`` whose reads make their own logits: one launch for each read.

At op level that is a read on its own. At block level it is what the pass ``schedule`` takes where nothing is
differentiated and tokens are few; how many are few, these arms beside the others say.
"""

from __future__ import annotations

from torch import Tensor

from attnres_kernels.autograd.own_logits_reads import own_logits_read
from attnres_kernels.definition.read_parts import Neighbours
from attnres_kernels.generation.specs import NormKind
from attnres_kernels.launch import own_logits_tiling
from attnres_kernels.operators.own_logits_read import GENERATED_OWN_READ, GENERATED_OWN_READ_BACKWARD

from ..traffic import ADD, ArmTraffic, gradients_of, neighbours_of, partial_of, row_of, units
from ..work import BLOCK, EPS, Inputs, Shape


def most_sources(shape: Shape) -> int:
    """Sources, the open partial sum among them, of a read of this shape, at most: its backward holds no more."""
    norm: NormKind | None = "rms" if shape.level == BLOCK else None
    return own_logits_tiling.most_sources(shape.width, norm)


def traffic_of_own_logits(shape: Shape) -> ArmTraffic:
    """What the reads of a shape move on kernels that make the logits themselves.

    At block level the addition behind the last read is one of its own, whose backward moves nothing; each source gets
    a gradient from every read, and each but the first is added to the sum of those before; the branch that is the
    second read's partial sum gets two.
    """
    forward, backward = 0, 0
    for number in range(shape.reads):
        given = {"sources": [row_of(shape)] * shape.sources, "partial": partial_of(shape, number)}
        given |= {"neighbours": neighbours_of(shape, number), "grads": gradients_of(shape, number)}
        forward += units(GENERATED_OWN_READ, **given)
        backward += units(GENERATED_OWN_READ_BACKWARD, **given)
    if shape.level != BLOCK:
        return ArmTraffic(forward, backward)
    return ArmTraffic(forward + ADD, backward + ADD * (shape.sources * (shape.reads - 1) + (shape.reads > 2)))


def own_op(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
    """One read."""
    partial, query, key_weight = inputs.branches[0], inputs.queries[0], inputs.key_weights[0]
    return list(own_logits_read(inputs.sources, partial, query, key_weight, 1.0, EPS))


def own_block(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
    """All reads of a block, each with the add before it and the norm behind it."""
    normed: list[Tensor] = []
    partial: Tensor | None = None
    for number, norm_weight in enumerate(inputs.norm_weights):
        branch = inputs.branches[number - 1] if number > 1 else None
        partial = inputs.branches[0] if number == 1 else partial
        key = inputs.queries[number], inputs.key_weights[number]
        behind = Neighbours(branch, "rms", EPS, norm_weight, returns_value=False)
        value, *summed = own_logits_read(inputs.sources, partial, *key, 1.0, EPS, behind)
        normed.append(value)
        partial = summed[0] if summed else partial
    assert partial is not None
    return [*normed, partial + inputs.branches[-1]]
