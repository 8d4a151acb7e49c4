"""A small PreNorm model, and the same with depth attention by hand, for any mechanism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.reference.variants import VariantResiduals

WIDTH = 8

VARIANTS: list[dict[str, Any]] = [
    {"key_norm": "plain", "logit_scale": 0.5},
    {"logit_scale": 2.0},
    {"window": 2},
    {"key_norm": "none"},
    {"mixing": "sigmoid"},
    {"heads": 4},
    {"query": "input"},
    {"value_norm": "plain"},
    {"queries": "qkv"},
    {
        "heads": 2,
        "mixing": "sigmoid",
        "key_norm": "none",
        "logit_scale": 0.5,
        "window": 1,
        "query": "input",
        "value_norm": "plain",
    },
]
"""One of each, and all at once."""


class Layer(nn.Module):
    """``x + down(gelu(up(norm(x))))``"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Toy(nn.Module):
    """Layers, and a norm behind. checkpointed: compute each layer again in the backward."""

    def __init__(self, layers: int = 5, width: int = WIDTH) -> None:
        super().__init__()
        self.h = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.h:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.norm(x)


def toy(layers: int = 5) -> Toy:
    """One with seeded weights, in fp64."""
    torch.manual_seed(0)
    return Toy(layers).double()


def states(seed: int = 1) -> Tensor:
    """Input, `[2, 3, WIDTH]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64)


def by_hand(model: Toy, x: Tensor, reads: Sequence[Mapping[str, Tensor]], block_size: int, **variant: Any) -> Tensor:
    """The output of the model with depth attention.

    reads: of each read with two sources or more, its parameters by name; variant: eps, scale, and options of the
    mechanism.
    """
    residuals = VariantResiduals(x, block_size, reads, **variant)
    for layer in model.h:
        residuals.write(layer.down(F.gelu(layer.up(_layer_norm(layer.norm, residuals.read())))))
    out = _layer_norm(model.norm, residuals.read())
    residuals.finish()
    return out


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def reads_of(model: nn.Module) -> list[dict[str, Tensor]]:
    """The parameters of the reads of a prepared model, by name."""
    return [dict(read.named_parameters()) for read in model.attnres.streams[0].reads]


def randomise(model: nn.Module, seed: int = 2) -> None:
    """Queries and key weights far from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.attnres.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.5)
