"""Small models of which Dynamo makes several graphs, or could."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8


class Block(nn.Module):
    def __init__(self, writes: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(writes))
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(writes))

    def forward(self, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + torch.tanh(linear(norm(x)))
        return x


class Stack(nn.Module):
    """Blocks one after another. between: what calls each, `between(block, x, index)`; None for the block itself."""

    def __init__(self, between: Callable[..., Tensor] | None = None, layers: int = 3, writes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(Block(writes) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.between = between

    def forward(self, ids: Tensor) -> Any:
        x = self.embedding(ids)
        for index, block in enumerate(self.blocks):
            x = block(x) if self.between is None else self.between(block, x, index)
        return self.norm(x)


def ids() -> Tensor:
    return torch.arange(6).view(2, 3)


def printing(block: nn.Module, x: Tensor, index: int) -> Tensor:
    """A graph break in the loop, for which Dynamo leaves the loop to Python."""
    if index == 1:
        str(float(x.detach().norm()))  # the break
    return block(x)


def line_of_the_break() -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(number for number, text in enumerate(file, start=1) if "# the break" in text)


class Skip(nn.Module):
    """A state of one stream is added to a later stream, behind a graph break if there is one."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = Block(), Block(), Block(3)
        self.projection, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.breaks = breaks

    def forward(self, x: Tensor) -> Any:
        skip = self.first(x)
        y = self.projection(self.norm(self.second(skip)))
        if self.breaks:
            torch._dynamo.graph_break()
        return self.norm(self.third(y) + skip)
