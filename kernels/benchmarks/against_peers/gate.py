"""The gate: an arm is timed only if it computes what the definition does in fp64.

All of a read but the gradients of its parameters is computed per token. So the definition runs over a few tokens at a
time, which fits in memory for every shape: over all of them for the gradients of the parameters, and kept for a sample
of tokens, the first and the last among them, where there are many. An arm always computes all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .work import Inputs, Shape, definition, output_names

TOLERANCES = {"bfloat16": 3e-2, "float16": 6e-3, "float32": 1e-4}
"""Largest relative error of a row, or of the gradient of a parameter. In bf16 about four times what rounding the
partial sums, the outputs and the gradients once per read gives; in fp32 what a sum in another order gives."""

KEPT_TOKENS = 4096
_CHUNK_BYTES = {"cuda": 4 << 30, "cpu": 1 << 29}


@dataclass(frozen=True)
class Reference:
    """What the definition gives in fp64."""

    tokens: Tensor
    """Those that are kept, their numbers."""
    outputs: dict[str, Tensor]
    """At these tokens."""
    gradients: dict[str, Tensor]
    """By name, of tensors ``[T, d]`` at these tokens; none without training."""
    output_grads: list[Tensor]
    """What the gradients are of, ``[T, d]`` in the dtype of the work."""


def reference(shape: Shape, inputs: Inputs, training: bool) -> Reference:
    """Run the definition.

    Args:
        shape: of the work.
        inputs: that every arm gets.
        training: gradients too.
    """
    device = inputs.sources[0].device
    tokens = _kept(shape.tokens, device)
    generator = torch.Generator(device).manual_seed(1)
    like = inputs.sources[0].detach()
    names = output_names(shape)
    grads = [torch.empty_like(like).normal_(generator=generator) for _ in names] if training else []
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    found: dict[str, list[Tensor]] = {}
    for chunk in _chunks(shape, torch.arange(shape.tokens, device=device) if training else tokens):
        kept = torch.isin(chunk, tokens)
        exact = _exact(inputs, chunk, training)
        with torch.set_grad_enabled(training):
            outputs = definition(exact)
        for name, output in zip(names, outputs, strict=True):
            parts[name].append(output.detach()[kept])
        if training:
            leaves = exact.leaves(shape.reads)
            chunk_grads = [grad[chunk].double() for grad in grads]
            for name, grad in zip(
                leaves, torch.autograd.grad(outputs, list(leaves.values()), chunk_grads), strict=True
            ):
                found.setdefault(name, []).append(grad[kept] if grad.dim() > 1 else grad)
    gradients = {name: torch.cat(of) if of[0].dim() > 1 else torch.stack(of).sum(0) for name, of in found.items()}
    return Reference(tokens, {name: torch.cat(of) for name, of in parts.items()}, gradients, grads)


@dataclass(frozen=True)
class Results:
    """What one run of an arm gives."""

    outputs: list[Tensor]
    """Those that every arm has."""
    gradients: dict[str, Tensor | None]
    """By name, None for what gets none; empty without training."""

    def same_bits(self, other: Results) -> bool:
        """Whether another run of the same arm gives the same bits."""
        pairs = zip([*self.outputs, *self.gradients.values()], [*other.outputs, *other.gradients.values()], strict=True)
        return all(one is two or (one is not None and two is not None and torch.equal(one, two)) for one, two in pairs)


def results(
    output_grads: list[Tensor], shape: Shape, inputs: Inputs, call: Callable[[], list[Tensor]], training: bool
) -> Results:
    """Run an arm once.

    Args:
        output_grads: what the gradients are of.
        shape: of the work.
        inputs: that the arm gets.
        call: gives the arm's outputs, under the grad mode that ``training`` asks for.
        training: gradients too.
    """
    outputs = call()[: len(output_names(shape))]
    if not training:
        return Results(outputs, {})
    leaves = inputs.leaves(shape.reads)
    grads = torch.autograd.grad(outputs, list(leaves.values()), output_grads, allow_unused=True)
    return Results(outputs, dict(zip(leaves, grads, strict=True)))


def errors(wanted: Reference, found: Results) -> dict[str, float]:
    """The largest errors of an arm, of outputs and of gradients, infinite for what is not finite or not there.

    Args:
        wanted: of the definition.
        found: of the arm.
    """
    pairs = zip(found.outputs, wanted.outputs.values(), strict=True)
    largest = {"outputs": max(_error(output, expected, wanted.tokens) for output, expected in pairs)}
    if found.gradients:
        of_gradients = [_error(grad, wanted.gradients[name], wanted.tokens) for name, grad in found.gradients.items()]
        largest["gradients"] = max(of_gradients)
    return largest


def beyond(found: dict[str, float], dtype: str) -> str:
    """Which errors are more than is tolerated, in words; '' if none is.

    Args:
        found: the largest errors of an arm.
        dtype: of the work, a name of ``TOLERANCES``.
    """
    bound = TOLERANCES[dtype]
    wrong = [f"{name} {value:.3g}" for name, value in found.items() if not value <= bound]
    return f"largest relative error of {', '.join(wrong)}: more than {bound:g}" if wrong else ""


def _error(actual: Tensor | None, expected: Tensor, tokens: Tensor) -> float:
    if actual is None or not bool(torch.isfinite(actual).all()):
        return float("inf")
    actual = actual.detach()
    values = (actual[tokens] if actual.dim() > 1 else actual).double()
    difference, size = (values - expected).norm(dim=-1), expected.norm(dim=-1)
    # A row whose gradient is by chance far smaller than the others' is measured against them.
    return float((difference / size.clamp_min(max(0.1 * float(size.mean()), 1e-30))).max())


def _kept(count: int, device: torch.device) -> Tensor:
    if count <= KEPT_TOKENS:
        return torch.arange(count, device=device)
    edge = KEPT_TOKENS // 4
    generator = torch.Generator().manual_seed(2)
    between = torch.randperm(count - 2 * edge, generator=generator)[: KEPT_TOKENS - 2 * edge] + edge
    ends = torch.arange(edge), torch.arange(count - edge, count)
    return torch.cat([*ends, between]).sort().values.to(device)


def _chunks(shape: Shape, tokens: Tensor) -> tuple[Tensor, ...]:
    """As many tokens at once as autograd's graph of the definition has room for."""
    kept_per_token = 8 * shape.width * 6 * (shape.sources + 1) * shape.reads
    available = _CHUNK_BYTES.get(tokens.device.type, 1 << 29)
    return torch.split(tokens, max(1, available // kept_per_token))


def _exact(inputs: Inputs, tokens: Tensor, training: bool) -> Inputs:
    def exact(tensors: list[Tensor], per_token: bool) -> list[Tensor]:
        given = (x.detach()[tokens] if per_token else x.detach() for x in tensors)
        return [x.double().requires_grad_(training) for x in given]

    return Inputs(*(exact(tensors, index < 2) for index, tensors in enumerate(inputs)))
