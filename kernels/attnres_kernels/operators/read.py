"""One read on a generated kernel, with its neighbours, and its backward.

What an operator does not make of its possible results is left out of the list that it returns.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import Neighbours, OutputGradients, ReadForm, ReadParts
from attnres_kernels.launch import launch_read
from attnres_kernels.launch.rows import rows_of
from attnres_kernels.operators.definition import OperatorDefinition, Work, multiplied
from attnres_kernels.operators.phase_1 import columns


class Read(NamedTuple):
    """One read. dtype: of the stream and of what is returned."""

    parts: ReadParts
    neighbours: Neighbours
    form: ReadForm
    dtype: torch.dtype


def _with_own_columns(parts: ReadParts, form: ReadForm) -> ReadParts:
    """Of all logits those of this read, `[rows]`."""
    return parts._replace(logits=[x.squeeze(1) for x in columns(parts.logits, form.number, 1, form.total)])


def _run(call: Read) -> list[Tensor]:
    """The value, the normed value and the new partial sum `[*, d]`, those that there are, and the statistics."""
    parts, form = _with_own_columns(call.parts, call.form), call.form
    made = launch_read.read(parts, call.dtype, form.factor, form.eps, call.neighbours)
    return made.as_list(parts.values()[0].shape)


def _fake(call: Read) -> list[Tensor]:
    like = call.parts.values()[0]
    made = [like.new_empty(like.shape, dtype=call.dtype) for _ in range(sum(call.neighbours.results()))]
    return [*made, like.new_empty((rows_of(like).shape[0], launch_read.STATISTICS), dtype=torch.float32)]


def _flops(call: Read) -> int:
    """The weighted sum of all parts, and square sum and dot product of the partial sum."""
    values = call.parts.values()
    return multiplied(len(values) + 2 * (call.parts.partial is not None), values[0])


def _work(call: Any) -> Work:
    return Work(len(call.parts.sources), takes_in=[*call.parts.takes_in(), *call.neighbours.takes_in()])


GENERATED_READ = OperatorDefinition(
    "attnres::generated_read",
    Read,
    list[Tensor],
    _run,
    _fake,
    kernels=lambda call: launch_read.read_kernels(call.parts, call.neighbours),
    flops=_flops,
    work=_work,
    computes=(scheduled.merge, scheduled.direct_read, scheduled.fused_merge, scheduled.fused_direct_read),
)


class ReadBackward(NamedTuple):
    """Arguments of the backward of one read on a generated kernel.

    statistics: of the read; parts: its partial sum is the one that was read; adds: whether there was a branch, which
    is not kept; the others as the read was given them.
    """

    grads: OutputGradients
    statistics: Tensor
    parts: ReadParts
    adds: bool
    neighbours: Neighbours
    form: ReadForm
    dtype: torch.dtype


def _run_backward(call: ReadBackward) -> list[Tensor]:
    """`h` `[*, d]` and its scalars `[2, rows]`; then gradients, those that there are: of the partial sum `[*, d]`, and
    of its key, the norm's weight and its bias `[d]` in fp32.
    """
    parts, shape = _with_own_columns(call.parts, call.form), call.parts.values()[0].shape
    found = launch_read.read_backward(
        parts, call.statistics.contiguous(), call.dtype, call.form.factor, call.grads, call.adds, call.neighbours
    )
    of_partial = [] if found.partial is None else [found.partial.reshape(shape)]
    vectors = [x for x in (found.key, found.norm_weight, found.norm_bias) if x is not None]
    return [found.read.reshape(shape), found.scalars, *of_partial, *vectors]


def vectors_through(neighbours: Neighbours, grads: OutputGradients) -> Sequence[Tensor]:
    """The norm's weight and bias, those that there are, if they get a gradient.

    Args:
        neighbours: of a read.
        grads: of its outputs.
    """
    behind, _ = launch_read.through_norm(neighbours, grads)
    return [x for x in (behind.norm_weight, behind.norm_bias) if x is not None]


def _fake_backward(call: ReadBackward) -> list[Tensor]:
    like, has_partial = call.parts.values()[0], call.parts.partial is not None
    wide = [like.new_empty(like.shape, dtype=call.dtype) for _ in range(1 + has_partial)]
    vectors = has_partial + len(vectors_through(call.neighbours, call.grads))
    scalars = like.new_empty((2, rows_of(like).shape[0]), dtype=torch.float32)
    made = [like.new_empty((like.shape[-1],), dtype=torch.float32) for _ in range(vectors)]
    return [wide[0], scalars, *wide[1:], *made]


def _backward_flops(call: ReadBackward) -> int:
    """The weighted sum again, and times its gradient; of the partial sum a product, three terms and the key's."""
    values = call.parts.values()
    return multiplied(len(values) + 1 + 5 * (call.parts.partial is not None), values[0])


GENERATED_READ_BACKWARD = OperatorDefinition(
    "attnres::generated_read_backward",
    ReadBackward,
    list[Tensor],
    _run_backward,
    _fake_backward,
    kernels=lambda call: launch_read.read_backward_kernels(call.parts, call.grads, call.adds, call.neighbours),
    flops=_backward_flops,
    work=_work,
)
