"""What a recording of a model adds to its graph: sums over tokens per read and write, and gradient norms per write.

Everything that is recorded is a plain sum with its number of tokens beside it, so that steps, sizes and graphs add up.
The operators are opaque to a compiler and have no gradient: a graph computes with them what it does without.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition.naive import check_sources, depth_weights, statistics_dtype
from attnres_kernels.operators.definition import OperatorDefinition, torch_operator

READ_EXTRA = 3
"""Entries of `READ_STATISTICS` behind the weights."""

WRITE_SIZE = 3
"""Entries of `WRITE_STATISTICS`."""


class ReadStatistics(NamedTuple):
    """Arguments of what a recording keeps of a read.

    sources: the `n` sources `[*, d]` of a read; key_vector: its effective key `[d]`; value: what it gave, `[*, d]`;
    eps: of the key norm.
    """

    sources: Sequence[Tensor]
    key_vector: Tensor
    value: Tensor
    eps: float


def _run_read(call: ReadStatistics) -> Tensor:
    """Sums over the tokens of one read, by the definition of its weights (equations 2 and 3 of the paper).

    Returns:
        `[n + 3]` in fp32 (fp64 for fp64 sources): the sum of the weight of each source, of the entropy of the weights
        in nats, of the mean square of `value`, and the number of tokens.
    """
    sources, key_vector, value, eps = call
    check_sources(sources, key_vector)
    with torch.autocast(value.device.type, enabled=False):
        weights = depth_weights(sources, key_vector, eps).reshape(-1, len(sources))
        entropy = torch.special.entr(weights).sum()
        return torch.cat([weights.sum(0), torch.stack([entropy, *squares(value)]).to(weights.dtype)])


class WriteStatistics(NamedTuple):
    """Arguments of what a recording keeps of a write.

    branch: `[*, d]` output of a sublayer; partial: `[*, d]` sum of its block, this output included.
    """

    branch: Tensor
    partial: Tensor


def _run_write(call: WriteStatistics) -> Tensor:
    """Sums over the tokens of one write.

    Returns:
        `[3]` in fp32 (fp64 for fp64): the sums of the mean squares of both, and the number of tokens.
    """
    with torch.autocast(call.branch.device.type, enabled=False):
        return torch.stack([squares(call.branch)[0], *squares(call.partial)])


def squares(value: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over tokens of the mean square over features, and the number of tokens."""
    wide = value.to(statistics_dtype(value.dtype))
    tokens = math.prod(value.shape[:-1])
    return wide.square().mean(-1).sum(), wide.new_full((), tokens)


def without_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Set up the context of an operator that no gradient passes."""
    ctx.mark_non_differentiable(output)


def no_gradient(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    """Its backward."""
    return (None,) * len(ctx.needs_input_grad)


READ_STATISTICS = OperatorDefinition(
    "attnres::read_statistics",
    ReadStatistics,
    Tensor,
    _run_read,
    lambda call: call.value.new_empty([len(call.sources) + READ_EXTRA], dtype=statistics_dtype(call.value.dtype)),
    make=torch_operator(),
)

WRITE_STATISTICS = OperatorDefinition(
    "attnres::write_statistics",
    WriteStatistics,
    Tensor,
    _run_write,
    lambda call: call.branch.new_empty([WRITE_SIZE], dtype=statistics_dtype(call.branch.dtype)),
    make=torch_operator(),
)

for _definition in (READ_STATISTICS, WRITE_STATISTICS):
    _definition.operator.register_autograd(no_gradient, setup_context=without_gradient)


def gather_statistics(parts: Sequence[Tensor]) -> Tensor:
    """All statistics of a graph as one vector, on the device of the first and in the widest dtype."""
    return torch.cat([part.to(parts[0].device) for part in parts])


class _GradientProbe(torch.autograd.Function):
    """The identity; the "gradient" of the probe is the squared norm of the gradient that passes through."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, probe: Tensor) -> Tensor:
        ctx.like = (probe.device, probe.dtype)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        device, dtype = ctx.like
        return grad, grad.to(statistics_dtype(grad.dtype)).square().sum().to(device, dtype)


def gradient_probe(value: Tensor, probe: Tensor) -> Tensor:
    """`value`, whose gradient is measured on its way back.

    Args:
        value: any tensor; one that needs no gradient is given back as it is.
        probe: scalar that requires a gradient; it receives the squared 2-norm of the gradient of `value`.
    """
    if not value.requires_grad:
        return value
    probed: Tensor = _GradientProbe.apply(value, probe)  # type: ignore[no-untyped-call]
    return probed
