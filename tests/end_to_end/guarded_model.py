"""A small prepared model, the equations of its rewrite in eager, and how these tests compile it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import attnres_compile as ac

WIDTH = 8
EAGER = {"inner": "eager"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Body(nn.Module):
    """All writes of the stream, and the embedding before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.between: Callable[[int, Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.between is not None:
            self.between(-1, x)
        x = self.embedding(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.between is not None:
                self.between(number, x)
        return self.norm(x)


class Net(nn.Module):
    """A body with a head, as models of transformers are made."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def generate(self, x: Tensor) -> Tensor:
        return self(x)


def prepared(x: Tensor, **options: Any) -> Net:
    torch.manual_seed(0)
    model = Net().double()
    ac.prepare(model, (x,), **{"block_size": 1, "inner": "eager", **options})
    randomize(model)
    return model


def randomize(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.attnres.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(drawn if name.endswith("query") else 1 + drawn / 4)


def by_hand(model: Net, x: Tensor) -> Tensor:
    """Full AttnRes (paper equation 4) of the model, with the queries and key norms that it has now."""
    body, sources = model.body, [model.body.embedding(x)]
    reads = iter(model.attnres.streams[0].reads)

    def read() -> Tensor:
        if len(sources) == 1:
            return sources[0]
        parameters = next(reads)
        values = torch.stack(sources)
        keys = values * (values.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * parameters.key_norm.weight
        return ((keys @ parameters.query).softmax(0).unsqueeze(-1) * values).sum(0)

    for block in body.blocks:
        sources.append(block.mlp(block.norm(read())))
    return model.head(body.norm(read()))


def in_place(model: nn.Module, **options: Any) -> Any:
    model.compile(backend="attnres", options=EAGER, **options)
    return model
