"""A small model whose attention has q, k and v apart, and the same with a read for each by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.reference.variants import VariantResiduals

WIDTH, HEADS = 8, 2


class Norm(nn.Module):
    """RMSNorm in five operations."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    """softmax: written by hand, else by torch's operator."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.q(x), self.k(x), self.v(x))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (q, k, v))
        if self.softmax:
            mixed = torch.matmul((torch.matmul(q, k.transpose(2, 3)) * (WIDTH / HEADS) ** -0.5).softmax(-1), v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and a feed-forward, one after the other, or side by side behind one norm."""

    def __init__(self, softmax: bool, parallel: bool) -> None:
        super().__init__()
        self.before, self.attention = Norm(), Attention(softmax)
        self.norm = None if parallel else nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def feed_forward(self, n: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(n)))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            n = self.before(x)
            return x + (self.attention(n) + self.feed_forward(n))
        x = x + self.attention(self.before(x))
        return x + self.feed_forward(self.norm(x))


class Attending(nn.Module):
    """Layers, and a norm behind. checkpointed: compute each layer again in the backward."""

    def __init__(self, layers: int = 3, softmax: bool = False, parallel: bool = False) -> None:
        super().__init__()
        self.h = nn.ModuleList(Layer(softmax, parallel) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.h:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.norm(x)


def attending(**form: Any) -> Attending:
    """One with seeded weights, in fp64."""
    torch.manual_seed(0)
    return Attending(**form).double()


def by_hand(
    model: Attending, x: Tensor, reads: Sequence[Mapping[str, Tensor]], block_size: int, **variant: Any
) -> Tensor:
    """The output of the model with depth attention, a read each for q, k and v, and for what else a norm leads to.

    reads: of each read with two sources or more, its parameters by name; variant: eps, scale, and options of the
    mechanism.
    """
    residuals = VariantResiduals(x, block_size, reads, **variant)
    for layer in model.h:
        if layer.norm is None:
            rest, q, k, v = (_rms_norm(layer.before, residuals.read()) for _ in range(4))
            residuals.write(_attended(layer, q, k, v) + layer.feed_forward(rest))
        else:
            residuals.write(_attended(layer, *(_rms_norm(layer.before, residuals.read()) for _ in range(3))))
            residuals.write(layer.feed_forward(_layer_norm(layer.norm, residuals.read())))
    out = _layer_norm(model.norm, residuals.read())
    residuals.finish()
    return out


def _attended(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attention = layer.attention
    q, k, v = (y.unflatten(-1, (HEADS, -1)) for y in (attention.q(q), attention.k(k), attention.v(v)))
    scores = torch.einsum("bihc,bjhc->bhij", q, k) / (WIDTH / HEADS) ** 0.5
    return attention.out(torch.einsum("bhij,bjhc->bihc", torch.softmax(scores, -1), v).flatten(2))


def _rms_norm(norm: Norm, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
