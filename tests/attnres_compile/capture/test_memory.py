"""What a capture keeps alive: nothing of the model."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import attnres_compile as ac

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


class Model(nn.Module):
    """In one graph, or in two with the stream in the second one."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        if self.breaks:
            torch._dynamo.graph_break()
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_model_dies_behind_its_captures(breaks: bool) -> None:
    model, x = Model(breaks), torch.randn(2, 3, WIDTH)
    assert ac.prepare(model, (x,)).streams
    assert ac.verify(model, (x,)).passed
    seen = [weakref.ref(model), *map(weakref.ref, model.parameters())]
    del model
    gc.collect()
    assert not [one for one in seen if one() is not None]
