"""Norms, spellings of additions, and steps that carry a stream on: what generated models are put together from."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """A norm over the last axis in one of its spellings. kind: a key of ``NORMS``; eps: of the norm."""

    def __init__(self, kind: str, width: int, eps: float) -> None:
        super().__init__()
        self.kind, self.width, self.eps = kind, width, eps
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.randn(width) * 0.1)
        self.module: nn.Module | None = None
        if kind == "nn.LayerNorm":
            self.module = nn.LayerNorm(width, eps=eps)
        elif kind == "nn.RMSNorm":
            self.module = nn.RMSNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return NORMS[self.kind](self, x)


def _rms(norm: Norm, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)


def _layer(norm: Norm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + norm.eps)


def _by_variance(norm: Norm, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + norm.eps)


def _flat(norm: Norm, x: Tensor) -> Tensor:
    return F.layer_norm(x.reshape(-1, norm.width), (norm.width,), norm.weight, norm.bias, norm.eps).view(x.shape)


NORMS: dict[str, Callable[[Norm, Tensor], Tensor]] = {
    "nn.LayerNorm": lambda n, x: n.module(x),
    "nn.RMSNorm": lambda n, x: n.module(x),
    "F.layer_norm": lambda n, x: F.layer_norm(x, (n.width,), n.weight, n.bias, n.eps),
    "F.layer_norm bare": lambda n, x: F.layer_norm(x, (n.width,), eps=n.eps),
    "F.rms_norm": lambda n, x: F.rms_norm(x, (n.width,), n.weight, n.eps),
    "rms by hand": lambda n, x: _rms(n, x) * n.weight,
    "rms of Gemma": lambda n, x: _rms(n, x) * (1.0 + n.weight),
    "layer by hand": lambda n, x: _layer(n, x) * n.weight + n.bias,
    "layer by variance": lambda n, x: torch.addcmul(n.bias, _by_variance(n, x), n.weight),
    "F.normalize": lambda n, x: F.normalize(x, dim=-1, eps=n.eps) * n.width**0.5 * n.weight,
    "vector norm": lambda n, x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(n.eps) * n.weight,
    "flattened": _flat,
    "modulated": lambda n, x: F.layer_norm(x, (n.width,), eps=n.eps) * (1 + n.weight) + n.bias,
    "written twice": lambda n, x: x.div((x * x).mean(dim=-1, keepdim=True).add(n.eps).sqrt()).mul(n.weight),
}


def _added_in_place(x: Tensor, f: Tensor) -> Tensor:
    f += x
    return f


def _copied_and_added(x: Tensor, f: Tensor) -> Tensor:
    x = x.clone()
    x += f
    return x


def _added_flat(x: Tensor, f: Tensor) -> Tensor:
    return (x.reshape(-1, x.shape[-1]) + f.reshape(-1, x.shape[-1])).view(x.shape)


ADDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + f": lambda x, f: x + f,
    "f + x": lambda x, f: f + x,
    "torch.add": torch.add,
    "torch.add of f": lambda x, f: torch.add(f, x, alpha=1),
    "x.add": lambda x, f: x.add(f),
    "f += x": _added_in_place,
    "f.add_": lambda x, f: f.add_(x),
    "x.clone() += f": _copied_and_added,
    "flat": _added_flat,
    "f.to(x.dtype)": lambda x, f: x + f.to(x.dtype),
}


def mask_like(x: Tensor) -> Tensor:
    """True but at position 1 of the first axis."""
    return (torch.arange(x.shape[0]) != 1).view(-1, *[1] * (x.dim() - 1))


CARRIES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "nothing": lambda _, x: x,
    "flatten": lambda _, x: x.reshape(-1, x.shape[-1]),
    "reshaped and back": lambda _, x: x.reshape(-1, x.shape[-1]).unsqueeze(0).view(x.shape),
    "swap": lambda _, x: x.transpose(0, 1),
    "cast": lambda _, x: x.float().double(),
    "clone": lambda _, x: x.clone(),
    "detach": lambda _, x: x.detach(),
    "dropout": lambda _, x: F.dropout(x, 0.25),
    "number": lambda _, x: 0.7 * x,
    "negated": lambda _, x: -x,
    "divided": lambda _, x: x / 2**0.5,
    "vector": lambda m, x: x * m.vector,
    "scalar": lambda m, x: m.scalar * x,
    "mask": lambda _, x: x * mask_like(x),
    "filled": lambda _, x: x.masked_fill(~mask_like(x), 0.0),
    "chosen": lambda _, x: torch.where(mask_like(x), x, 0.0),
    "in place": lambda _, x: x.mul_(-0.8),
}
"""Each given the tower, for its parameters, and the stream. All linear, so that every part of the sum can go through
one by itself; only a dropout has to draw its mask once for all parts.
"""
