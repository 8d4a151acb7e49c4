"""Models of these tests, explained once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import attnres_compile as ac
from tests.end_to_end.models import PreNorm, tokens
from tests.zoo import toys

CASES = {case.name: case for case in toys.CASES}


class Mixed(nn.Module):
    """A stream that can be rewritten, and behind it a PostNorm one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PreNorm()
        self.linears = nn.ModuleList(nn.Linear(13, 13) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(13) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.first(ids)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(x + linear(x))
        return x


class Pieces(PreNorm):
    """A clamp between the blocks: each is a piece of one stream."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(block(x.clamp(-4, 4)))
        return self.head(self.norm(x))


class BrokenBefore(PreNorm):
    """A graph break before the stream begins."""

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids.clamp(max=12)
        torch._dynamo.graph_break()
        return super().forward(ids)


class BrokenInside(PreNorm):
    """A graph break across the stream."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = self.blocks[1](self.blocks[0](x))
        torch._dynamo.graph_break()
        return self.head(self.norm(self.blocks[2](x)))


class NamedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x))


class Named(nn.Module):
    """Module names that HTML and XML would take for their own signs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"<b>&{k}": NamedBlock() for k in range(3)})
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return self.norm(x)


@functools.cache
def explained(name: str) -> ac.Explanation:
    """The explanation of a toy of the zoo, or of a model of this file."""
    torch.manual_seed(0)
    own = {"mixed": Mixed, "pieces": Pieces, "broken_before": BrokenBefore, "broken_inside": BrokenInside}
    if name in own:
        return ac.explain(own[name](), (tokens(),), on_decline="ignore", name=name)
    if name == "named":
        return ac.explain(Named(), (torch.randn(2, 8),), name='<script>alert("x")</script>')
    if name.startswith("deep_"):
        return ac.explain(toys.deep_toy(int(name[5:])), (toys.random_tokens(),), name=name)
    model, args, kwargs = CASES[name].build()
    return ac.explain(model, args, kwargs, on_decline="ignore", name=name)
