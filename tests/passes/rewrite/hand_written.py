"""Models that carry their stream on by a factor, and the same models with attention residuals, written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.passes.rewrite.random_models import SimulatedStream

WIDTH, LAYERS = 6, 4


@dataclass(frozen=True)
class Kind:
    """One way to carry the stream from layer to layer.

    before, after: what happens to the stream before a sublayer reads it and after its output is added; carried: what
    happens where the sublayer's output is added, behind its read; injected: what else is added, made of the root.
    """

    before: Callable[[Factors, Tensor], Tensor] | None = None
    carried: Callable[[Factors, Tensor], Tensor] | None = None
    after: Callable[[Factors, Tensor], Tensor] | None = None
    injected: Callable[[Factors, Tensor], Tensor] | None = None
    in_place: bool = False


class Factors(nn.Module):
    """What the stream can be multiplied by."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.scalar = nn.Parameter(torch.rand(()) + 0.5)
        self.vector = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.pair = nn.Parameter(torch.rand(2) + 0.3)
        self.register_buffer("mask", torch.tensor([[1, 1, 0], [1, 1, 1]])[..., None])
        self.double()

    def sublayer(self, k: int, x: Tensor) -> Tensor:
        return torch.tanh(self.linears[k](normed(x)))


KINDS: dict[str, Kind] = {
    "number": Kind(carried=lambda f, x: 0.9 * x),
    "learned scalar": Kind(carried=lambda f, x: f.scalar * x),
    "learned vector": Kind(carried=lambda f, x: x * f.vector),
    "two-sided": Kind(after=lambda f, x: x / 2**0.5),
    "divided by a scalar": Kind(before=lambda f, x: x / f.scalar),
    "negated": Kind(after=lambda f, x: -x),
    "mask": Kind(after=lambda f, x: x * f.mask),
    "mask of its shape": Kind(after=lambda f, x: x * f.mask.expand_as(x)),
    "filled": Kind(after=lambda f, x: x.masked_fill(f.mask == 0, 0.0)),
    "chosen": Kind(after=lambda f, x: torch.where(f.mask > 0, x, 0.0)),
    "chosen the other way round": Kind(after=lambda f, x: torch.where(f.mask == 0, torch.zeros_like(x), x)),
    "in place": Kind(after=lambda f, x: x.mul_(f.vector), in_place=True),
    "filled in place": Kind(after=lambda f, x: x.masked_fill_(f.mask == 0, 0.0), in_place=True),
    "root with weights": Kind(before=lambda f, x: f.pair[0] * x, injected=lambda f, x: f.pair[1] * x),
    "root": Kind(injected=lambda f, x: x),
    "before and after": Kind(before=lambda f, x: 0.5 * x, after=lambda f, x: x * f.vector),
}


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), eps=1e-12)


class Scaled(Factors):
    """As its author would write it."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        kind = self.kind
        x = root = torch.sinh(x)
        for k in range(LAYERS):
            if kind.before is not None:
                x = kind.before(self, x)
            if kind.injected is not None:
                x = x + kind.injected(self, root)
            branch = self.sublayer(k, x)
            x = (x if kind.carried is None else kind.carried(self, x)) + branch
            if kind.after is not None:
                x = kind.after(self, x)
        return normed(x)


def simulated(model: Scaled, x: Tensor, added: list[Tensor], **options: Any) -> Tensor:
    """The model with attention residuals: what carries the stream on is applied to every source of it."""
    kind = model.kind
    root = torch.sinh(x)
    stream = SimulatedStream(root, options["block_size"], added, options["eps"], options["scale"])

    def carry(step: Callable[[Factors, Tensor], Tensor] | None) -> None:
        if step is not None:
            stream.carry(lambda source: step(model, source.clone()))

    for k in range(LAYERS):
        carry(kind.before)
        if kind.injected is not None:
            stream.write(kind.injected(model, root))
        branch = model.sublayer(k, stream.read())
        carry(kind.carried)
        stream.write(branch)
        if k + 1 < LAYERS or kind.in_place:
            carry(kind.after)
    last = stream.read()
    assert next(stream.parameters, None) is None, "every parameter is read once"
    # What makes a new value of the last state is the reader of that state; in place, it is the state that changes.
    return normed(last if kind.after is None or kind.in_place else kind.after(model, last.clone()))
