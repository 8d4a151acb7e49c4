"""Small models of these tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, LAYERS, VOCABULARY = 16, 3, 13


class PreNorm(nn.Module):
    """An embedding, LAYERS PreNorm sublayers in blocks of their own, a final norm and a head."""

    def __init__(self, layers: int = LAYERS, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.mlp(self.norm(x)))


def tokens(batch: int = 2, length: int = 5) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length))


def randomize(model: nn.Module) -> None:
    """Queries and key norms away from their initial values, so that reads are no plain averages."""
    with torch.no_grad():
        for stream in model.attnres.streams:
            for read in stream.reads:
                read.query.normal_()
                read.key_norm.weight.normal_(1.0, 0.25)
