"""Models whose forwards stand behind a decorator that takes all arguments, as most of transformers 5.24 do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import attnres_compile as ac
from tests.end_to_end.models import VOCABULARY, WIDTH, randomize, tokens


def renames(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Takes an argument under its old name as well."""

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if "input_ids" in kwargs:
            kwargs["ids"] = kwargs.pop("input_ids")
        return forward(*args, **kwargs)

    return wrapped


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    @renames
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mlp(self.norm(x)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x))
        return out


class Decorated(Plain):
    forward = renames(Plain.forward)


def described(model: nn.Module) -> list[str]:
    plan = ac.prepare(model, (tokens(),), block_size=1)
    (stream,) = plan.streams
    return [stream.name, *(read.module for read in stream.reads), *(write.module for write in stream.writes)]


def test_modules_have_the_names_that_they_have_without_the_decorator() -> None:
    plain = described(Plain())
    assert described(Decorated()) == plain
    assert plain[:2] == ["layers", "layers.0.norm"]
    assert described(numbered()) == ["model", "0.norm", "1.norm", "2.norm", "", "0.mlp", "1.mlp", "2.mlp"]


def numbered() -> nn.Module:
    """Modules with numbers for names, which a decorated forward is not given."""

    class Numbered(nn.Sequential):
        @renames
        def forward(self, ids: Tensor) -> Tensor:
            x = torch.nn.functional.one_hot(ids, WIDTH).float().cumsum(-1)
            for layer in self:
                x = layer(x)
            return nn.functional.layer_norm(x, (WIDTH,))

    return Numbered(*(Layer() for _ in range(3)))


def test_layers_compiled_one_by_one_are_the_model_compiled_whole() -> None:
    ids, logits = tokens(), []
    for compiles_layers in (False, True):
        torch._dynamo.reset()
        model = Decorated().double()
        ac.prepare(model, (ids,), block_size=1)
        torch.manual_seed(1)
        randomize(model)
        for part in (*model.layers, model.norm) if compiles_layers else (model,):
            part.compile(backend="attnres", options={"inner": "eager"})
        logits.append(model(ids))
        assert ac.status(model).state == "rewritten"
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-12)


def test_matrices_inside_the_layers_are_matrices_for_muon() -> None:
    groups = {}
    for kind in (Plain, Decorated):
        model = kind()
        ac.prepare(model, (tokens(),), block_size=1)
        found = ac.param_groups(model, muon=True, lr=1e-3, weight_decay=0.1)
        groups[kind] = [[sorted(map(tuple, (p.shape for p in group["params"]))) for group in part] for part in found]
    assert groups[Plain] == groups[Decorated]
    assert groups[Plain][0][0] == [(WIDTH, WIDTH)] * 3
