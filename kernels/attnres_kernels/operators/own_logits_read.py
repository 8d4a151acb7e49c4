"""A read that makes the logits of its sources itself on one generated kernel, with its neighbours, and its backward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import Neighbours, OutputGradients, OwnLogitsParts
from attnres_kernels.generation.own_logits_read import statistics_of
from attnres_kernels.launch import launch_own_logits_read as launch
from attnres_kernels.launch.rows import rows_of
from attnres_kernels.operators.definition import OperatorDefinition, Work, multiplied
from attnres_kernels.operators.read import vectors_through


class OwnLogitsRead(NamedTuple):
    """One read. factor: of the result; eps: of the key norm."""

    parts: OwnLogitsParts
    neighbours: Neighbours
    factor: float
    eps: float


def _run(call: OwnLogitsRead) -> list[Tensor]:
    """The value, the normed value and the new partial sum `[*, d]`, those that there are, and the statistics."""
    made = launch.own_logits_read(call.parts, call.factor, call.eps, call.neighbours)
    return made.as_list(call.parts.values()[0].shape)


def _kernels(call: OwnLogitsRead) -> list[Any]:
    return [launch.own_logits_spec(call.parts, call.neighbours)]


def _fake(call: OwnLogitsRead) -> list[Tensor]:
    like, (spec,) = call.parts.values()[0], _kernels(call)
    made = [like.new_empty(like.shape) for _ in range(sum(call.neighbours.results()))]
    return [*made, like.new_empty((rows_of(like).shape[0], statistics_of(spec.read)), dtype=torch.float32)]


def _flops(call: OwnLogitsRead) -> int:
    """Square sum, dot product and weighted sum of every source."""
    values = call.parts.values()
    return multiplied(3 * len(values), values[0])


def _work(call: Any) -> Work:
    takes_in = ["partial sum"] * (call.parts.partial is not None) + call.neighbours.takes_in()
    return Work(len(call.parts.sources), takes_in=takes_in)


GENERATED_OWN_READ = OperatorDefinition(
    "attnres::generated_own_read",
    OwnLogitsRead,
    list[Tensor],
    _run,
    _fake,
    kernels=_kernels,
    flops=_flops,
    work=_work,
    computes=(scheduled.own_logits_read, scheduled.fused_own_logits_read),
)


class OwnLogitsReadBackward(NamedTuple):
    """Arguments of the backward of a read that makes its own logits.

    statistics: of the read; parts: its partial sum is the one that was read; neighbours: without the branch.
    """

    grads: OutputGradients
    statistics: Tensor
    parts: OwnLogitsParts
    neighbours: Neighbours
    factor: float


def _run_backward(call: OwnLogitsReadBackward) -> list[Tensor]:
    """Gradients of the sources `[*, d]`, the partial sum last; then of the key, and of the norm's weight and its bias
    if there is a gradient through it, `[d]` in fp32.
    """
    parts, statistics = call.parts, call.statistics.contiguous()
    found = launch.own_logits_read_backward(parts, statistics, call.factor, call.grads, call.neighbours)
    wide = [grad.reshape(x.shape) for grad, x in zip(found.sources, parts.values(), strict=True)]
    return [*wide, *(x for x in (found.key, found.norm_weight, found.norm_bias) if x is not None)]


def _fake_backward(call: OwnLogitsReadBackward) -> list[Tensor]:
    query, vectors = call.parts.query, 1 + len(vectors_through(call.neighbours, call.grads))
    wide = [x.new_empty(x.shape) for x in call.parts.values()]
    return [*wide, *(query.new_empty(query.shape, dtype=torch.float32) for _ in range(vectors))]


def _backward_flops(call: OwnLogitsReadBackward) -> int:
    """Of every source a product, three terms and the key's; through a norm the weighted sum again."""
    values = call.parts.values()
    return multiplied(len(values) * (5 + (call.grads.normed_grad is not None)), values[0])


GENERATED_OWN_READ_BACKWARD = OperatorDefinition(
    "attnres::generated_own_read_backward",
    OwnLogitsReadBackward,
    list[Tensor],
    _run_backward,
    _fake_backward,
    kernels=lambda call: [launch.own_logits_backward_spec(call.parts, call.grads, call.neighbours)],
    flops=_backward_flops,
    work=_work,
)
