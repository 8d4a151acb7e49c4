"""One chunk of a model as a module: its own parameters under the names they have in the model, and a pure forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from attnres_compile.model import plan_tensor
from attnres_compile.model.parameters import NAME as PARAMETERS
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_parameters import PATHS
from attnres_passes.ranks.split_stages import ChunkGraph
from attnres_passes.ranks.transfers import ChunkPlan
from attnres_passes.torch_private.ranks.dtensors import on_own_tokens

PLAN_TENSOR = f"{PARAMETERS}.{plan_tensor.NAME}"
"""In every chunk, so that each part of the state dict says what its parameters mean."""

CACHED = "cached"
"""Keyword of a chunk's forward that takes the blocks cached on the rank."""


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the model.

    names: its paths there; persistent: of buffers, whether the state dict has it; groups: of ranks that have other
    tokens of what this one is used on, for a parameter of a read.
    """

    names: tuple[str, ...]
    value: Tensor
    persistent: bool = True
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInput:
    """An input of the model, by the keyword under which chunks are given it."""

    name: str


@dataclass(frozen=True)
class ModelConstant:
    """What is no tensor, and the same in every call, such as a mesh of ranks."""

    value: Any


Origin = ModelTensor | ModelInput | ModelConstant


@dataclass(frozen=True)
class ChunkBody:
    """A chunk as it was captured in one mode.

    origins: what each placeholder of the whole graph stands for; prepared_plan: of the whole model.
    """

    graph: ChunkGraph
    origins: Mapping[int, Origin]
    prepared_plan: Plan


@dataclass
class _Callable:
    """A chunk in one mode.

    lookups: for each placeholder behind the sources, the module that holds its tensor and the name there, or its input;
    groups: of ranks that have other tokens, with the places of the parameters that are used on tokens.
    """

    call: Callable[..., Any]
    lookups: list[tuple[nn.Module, str] | ModelInput | ModelConstant]
    groups: dict[tuple[str, ...], list[int]]

    def given(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Values of the placeholders behind the sources, for the inputs of a call."""
        values = [self._value(one, inputs) for one in self.lookups]
        for groups, places in self.groups.items():
            own = on_own_tokens([values[place] for place in places], groups)
            for place, value in zip(places, own, strict=True):
                values[place] = value
        return values

    def _value(self, one: tuple[nn.Module, str] | ModelInput | ModelConstant, inputs: Mapping[str, Any]) -> Any:
        if isinstance(one, ModelInput):
            return inputs[one.name]
        return one.value if isinstance(one, ModelConstant) else getattr(*one)


@dataclass(frozen=True)
class _Content:
    """All of a chunk module but its parameters, in one attribute, so that no name of theirs is taken.

    callables: by whether the module is in training mode; prepared_plan: of the whole model.
    """

    plan: ChunkPlan
    callables: dict[bool, _Callable]
    prepared_plan: Plan


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
        callables = {}
        for mode, body in bodies.items():
            given = [body.origins[index] for index in body.graph.given]
            lookups = [_register(self, origin) if isinstance(origin, ModelTensor) else origin for origin in given]
            groups: dict[tuple[str, ...], list[int]] = {}
            for place, origin in enumerate(given):
                if isinstance(origin, ModelTensor) and (origin.groups or is_of_read(origin)):
                    groups.setdefault(origin.groups, []).append(place)
            callables[mode] = _Callable(_compiled(body.graph.gm, inner), lookups, groups)
        first = next(iter(bodies.values()))
        self._content = _Content(first.graph.chunk, callables, first.prepared_plan)
        like = next(self.parameters(), torch.empty(0))
        encoded = plan_tensor.encode(first.prepared_plan, like.dtype, like.device)
        _register(self, ModelTensor((PLAN_TENSOR,), encoded))

    def forward(self, *arrives: Tensor, cached: tuple[Tensor, ...] = (), **inputs: Any) -> Any:
        callables = self._content.callables
        chunk = callables[self.training if self.training in callables else not self.training]
        outputs = chunk.call(*arrives, *cached, *chunk.given(inputs))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        plan = self._content.plan
        return f"chunk {plan.index}, sublayers {plan.begin + 1}-{plan.end}"


def is_of_read(tensor: ModelTensor) -> bool:
    """Whether a tensor of the model is a parameter of a read."""
    return isinstance(tensor.value, nn.Parameter) and tensor.names[0].startswith(f"{PARAMETERS}.")


def inputs_of(module: ChunkModule) -> set[str]:
    """Names of the inputs of the model that a chunk uses."""
    lookups = [one for chunk in module._content.callables.values() for one in chunk.lookups]
    return {one.name for one in lookups if isinstance(one, ModelInput)}


def prepared_plan_of(module: ChunkModule) -> Plan:
    """The plan that the whole model was prepared with."""
    return module._content.prepared_plan


def _compiled(gm: GraphModule, inner: str) -> Callable[..., Any]:
    """Each graph has a code object of its own, so that Dynamo's limit of recompilations is per chunk."""
    if inner == "eager":
        return gm.forward
    compiled: Callable[..., Any] = torch.compile(gm, backend=inner, fullgraph=True, dynamic=False)
    return compiled


def _register(module: nn.Module, tensor: ModelTensor) -> tuple[nn.Module, str]:
    """Register a tensor under its dotted names, with plain modules for the path; the place of the first name."""
    places = [_place(module, name) for name in tensor.names]
    for parent, name in places:
        if isinstance(tensor.value, nn.Parameter):
            parent.register_parameter(name, tensor.value)
        else:
            parent.register_buffer(name, tensor.value, persistent=tensor.persistent)
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
    """Give storage on ``device`` to what was captured on "meta".

    AttnRes parameters begin as they do everywhere: zero queries, unit key weights, and the plan that they are for.

    Args:
        module: of the chunk; nothing happens to one that has its storage.
        device: where the chunk will run.

    Returns:
        The names of what still has no value then.
    """
    unset = {name for name, tensor in tensors_of(module) if tensor.is_meta}
    if not unset:
        return set()
    module.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in tensors_of(module):
            if name == PLAN_TENSOR:
                tensor.copy_(plan_tensor.encode(prepared_plan_of(module), tensor.dtype, device))
                unset.discard(name)
            elif name.startswith(f"{PARAMETERS}."):
                tensor.fill_(1.0 if name.endswith(f".{PATHS['key_weight']}") else 0.0)
                unset.discard(name)
    return unset
