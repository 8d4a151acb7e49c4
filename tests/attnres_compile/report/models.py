"""PreNorm toys whose costs can be written down, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


class Layer(nn.Module):
    """Two sublayers behind norms, each an MLP of its own; ``branch`` says whether each runs under a checkpoint."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width)) for _ in range(2)
        )
        self.branch = False

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._branch(self.mlps[0], self.norms[0](x))
        return x + self._branch(self.mlps[1], self.norms[1](x))

    def _branch(self, mlp: nn.Module, normed: Tensor) -> Tensor:
        return checkpoint(mlp, normed, use_reentrant=False) if self.branch else mlp(normed)


class Layered(nn.Module):
    """An embedding, layers, a norm and a head; ``setting`` says what runs under a checkpoint, as users write it."""

    def __init__(self, width: int, hidden: int, layers: int, setting: str = "none") -> None:
        super().__init__()
        self.embedding = nn.Linear(width, width)
        self.layers = nn.ModuleList(Layer(width, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)
        self.setting = setting
        for layer in self.layers:
            layer.branch = setting == "branch"

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.setting == "layer" else layer(x)
        return self.head(self.norm(x))


def by_hand(model: Layered, x: Tensor, block_size: int) -> Tensor:
    """Block AttnRes of a model with zero queries, every layer and the last read under a checkpoint.

    A layer is given the completed blocks and the open partial sum, and gives those that it changed.
    """
    completed, opened, writes = [model.embedding(x)], [], 0

    def layer_of(layer: Layer, count: int, before: int) -> Callable[..., tuple[Tensor, ...]]:
        def run(*sources: Tensor) -> tuple[Tensor, ...]:
            blocks, partial, number = list(sources[:count]), list(sources[count:]), before
            for norm, mlp in zip(layer.norms, layer.mlps, strict=True):
                write = mlp(norm(torch.stack([*blocks, *partial]).mean(0)))
                partial, number = [partial[0] + write if partial else write], number + 1
                if number % block_size == 0:
                    blocks, partial = [*blocks, *partial], []
            return (*blocks[count:], *partial)

        return run

    for layer in model.layers:
        run = layer_of(layer, len(completed), writes)
        made = list(checkpoint(run, *completed, *opened, use_reentrant=False))
        writes += 2
        opened = [made.pop()] if writes % block_size else []
        completed += made
    last = checkpoint(
        lambda *sources: model.norm(torch.stack(sources).mean(0)), *completed, *opened, use_reentrant=False
    )
    return model.head(last)


def saved_storages(run: Callable[[], Tensor], model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """One tensor of each storage that autograd keeps of a real run, parameters and input left out; and the output."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run()
    for given in (x, *model.parameters()):
        kept.pop(given.untyped_storage().data_ptr(), None)
    return list(kept.values()), output
