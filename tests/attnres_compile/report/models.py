"""PreNorm toys whose costs can be written down, and what is counted of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnres_compile.report.counting.model_counts import Lengths, ModelCounts, model_graphs
from attnres_passes.ir.config import AttnResConfig


class PreNorm(nn.Module):
    """``writes`` sublayers, each a linear map behind a norm, and a norm at the end."""

    def __init__(self, width: int, writes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(writes))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(writes + 1))

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=False):
            x = x + linear(norm(x))
        return self.norms[-1](x)


def toy_counts(width: int, tokens: int, writes: int, **options: object) -> ModelCounts:
    with torch.device("meta"):
        model, x = PreNorm(width, writes), torch.empty(1, tokens, width)
    return model_graphs(model, (x,), {}, AttnResConfig(**options)).count(Lengths())
