"""One chunk of a model as a module: its own parameters under the names they have in the model, and a pure forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from attnres_compile.model.parameters import NAME as PARAMETERS
from attnres_passes.ranks.split_stages import ChunkGraph
from attnres_passes.ranks.transfers import ChunkPlan

CACHED = "cached"
"""Keyword of a chunk's forward that takes the blocks cached on the rank."""


@dataclass(frozen=True)
class Held:
    """A tensor that a module holds. names: its paths in the model; persistent: of buffers, in the state dict or not."""

    names: tuple[str, ...]
    value: Tensor
    persistent: bool = True


@dataclass(frozen=True)
class Argument:
    """An input of the model, by the keyword under which chunks are given it."""

    name: str


@dataclass(frozen=True)
class ChunkBody:
    """A chunk as it was captured in one mode. origins: what each placeholder of the whole graph stands for."""

    graph: ChunkGraph
    origins: Mapping[int, Held | Argument]


@dataclass
class _Body:
    """homes: for each placeholder behind the sources, the module and the name to look it up by, or its argument."""

    call: Callable[..., Any]
    homes: list[tuple[nn.Module, str] | Argument]


@dataclass(frozen=True)
class _Inside:
    """All of a chunk module but its parameters, in one attribute, so that no name of theirs is taken.

    bodies: by whether the module is in training mode.
    """

    plan: ChunkPlan
    bodies: dict[bool, _Body]


class ChunkModule(nn.Module):
    """``forward(*arrives, cached=(..), **inputs)`` gives what the chunk sends, or the model's output.

    Keywords that the chunk has no use for are let pass: all chunks of a rank are given the same. The names of the
    state dict are those of the original model, so that a checkpoint of either loads into the other.
    """

    def __init__(self, bodies: Mapping[bool, ChunkBody], inner: str = "eager") -> None:
        """Args:
        bodies: by training mode; a model captured in one mode only has one. inner: as in AttnResConfig.
        """
        super().__init__()
        made = {}
        for mode, body in bodies.items():
            given = [body.origins[index] for index in body.graph.given]
            homes = [_register(self, origin) if isinstance(origin, Held) else origin for origin in given]
            made[mode] = _Body(_compiled(body.graph.gm, inner), homes)
        self._inside = _Inside(next(iter(bodies.values())).graph.chunk, made)

    def forward(self, *arrives: Tensor, cached: tuple[Tensor, ...] = (), **inputs: Any) -> Any:
        bodies = self._inside.bodies
        body = bodies[self.training if self.training in bodies else not self.training]
        given = [inputs[home.name] if isinstance(home, Argument) else getattr(*home) for home in body.homes]
        outputs = body.call(*arrives, *cached, *given)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        plan = self._inside.plan
        return f"chunk {plan.index}, sublayers {plan.begin + 1}-{plan.end}"


def inputs_of(module: ChunkModule) -> set[str]:
    """Names of the inputs of the model that a chunk uses."""
    bodies = module._inside.bodies.values()
    return {home.name for body in bodies for home in body.homes if isinstance(home, Argument)}


def _compiled(gm: GraphModule, inner: str) -> Callable[..., Any]:
    """Each graph has a code object of its own, so that Dynamo's limit of recompilations is per chunk."""
    if inner == "eager":
        return gm.forward
    compiled: Callable[..., Any] = torch.compile(gm, backend=inner, fullgraph=True, dynamic=False)
    return compiled


def _register(module: nn.Module, held: Held) -> tuple[nn.Module, str]:
    """Register a tensor under its dotted names, with plain modules for the path; the place of the first name."""
    places = [_place(module, name) for name in held.names]
    for parent, name in places:
        if isinstance(held.value, nn.Parameter):
            parent.register_parameter(name, held.value)
        else:
            parent.register_buffer(name, held.value, persistent=held.persistent)
    return places[0]


def _place(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the last name of a path, made if it is not there, and that name."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = module.get_submodule(parent)
    return module, name


def tensors_of(module: ChunkModule) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, those that are in no state dict too, under all their names in the model."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def materialise(module: ChunkModule, device: torch.device) -> set[str]:
    """Give storage on ``device`` to what was captured on "meta"; the names of what has no value then.

    AttnRes parameters begin as they do everywhere: zero queries, unit key weights.
    """
    unset = {name for name, tensor in tensors_of(module) if tensor.is_meta}
    if not unset:
        return set()
    module.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in tensors_of(module):
            if name.startswith(f"{PARAMETERS}."):
                tensor.fill_(0.0 if name.endswith(".query") else 1.0)
                unset.discard(name)
    return unset
