"""Sublayers: what is between a normed read and a write. Each ends in a product, so that it may be added to in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sublayer(nn.Module):
    """Of one kind. memory_width: of what it attends to beside its input, 0 if there is nothing."""

    def __init__(self, kind: str, width: int, memory_width: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(width, 3 * width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, width, bias=False)
        self.memory = nn.Linear(memory_width, width) if memory_width else None

    def forward(self, y: Tensor, memory: Tensor | None = None) -> Tensor:
        """``y``: normed, ``[.., width]``; ``memory``: ``[n, memory_width]``, normed as well."""
        if memory is not None and self.memory is not None:
            keys = self.memory(memory)
            y = y + torch.softmax(self.second(y) @ keys.t(), -1) @ keys
        return SUBLAYERS[self.kind](self, y)


def _attention(s: Sublayer, y: Tensor) -> Tensor:
    q, k, v = s.first(y).chunk(3, dim=-1)
    return s.last(torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v)


def _fused_attention(s: Sublayer, y: Tensor) -> Tensor:
    q, k, v = (part.unsqueeze(0) for part in s.first(y).chunk(3, dim=-1))
    return s.last(F.scaled_dot_product_attention(q, k, v).squeeze(0))


def _gated(s: Sublayer, y: Tensor) -> Tensor:
    gate, up, _ = s.first(y).chunk(3, dim=-1)
    return s.last(F.silu(gate) * up)


def _experts(s: Sublayer, y: Tensor) -> Tensor:
    gate = torch.softmax(s.second(y), -1)
    one, other, third = s.first(y).chunk(3, dim=-1)
    out = torch.tanh(one) * gate[..., :1]
    out = out + torch.tanh(other) * gate[..., 1:2]
    return s.last(out + third * gate[..., 2:3])


def _polynomial(s: Sublayer, y: Tensor) -> Tensor:
    z = s.second(y)
    z = z + 0.1 * z * z
    z = z + 0.01 * z * z * z
    return s.last(F.layer_norm(z, (z.shape[-1],)))


def _inner_sum(s: Sublayer, y: Tensor) -> Tensor:
    z = s.second(y)
    z = z + torch.tanh(s.first(z)[..., : z.shape[-1]])
    z = z + torch.tanh(s.second(z))
    return s.last(z)


SUBLAYERS: dict[str, Callable[[Sublayer, Tensor], Tensor]] = {
    "linear": lambda s, y: s.last(torch.tanh(s.second(y))),
    "mlp": lambda s, y: s.last(F.gelu(s.first(y)[..., -y.shape[-1] :])),
    "attention": _attention,
    "fused attention": _fused_attention,
    "gated": _gated,
    "experts": _experts,
    "polynomial": _polynomial,
    "inner sum": _inner_sum,
}


SUMS = frozenset({"experts", "polynomial", "inner sum"})
"""Kinds that add up something of their own."""


class Branch(nn.Module):
    """What scales a sublayer's output before it is added. kind: a key of ``BRANCHES``."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.vector = nn.Parameter(torch.rand(width) + 0.5)
        self.scalar = nn.Parameter(torch.rand(()) + 0.5)

    def forward(self, f: Tensor) -> Tensor:
        return BRANCHES[self.kind](self, f)


BRANCHES: dict[str, Callable[[Branch, Tensor], Tensor]] = {
    "nothing": lambda _, f: f,
    "number": lambda _, f: 0.3 * f,
    "layer scale": lambda b, f: f * b.vector,
    "scalar": lambda b, f: f * b.scalar.tanh(),
    "dropout": lambda _, f: F.dropout(f, 0.25),
    "drop path": lambda _, f: f * (torch.rand(f.shape[0], *[1] * (f.dim() - 1), dtype=f.dtype) < 0.7) / 0.7,
}
