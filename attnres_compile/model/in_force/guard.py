"""The guard at a prepared model: its own forward runs inside the rewrite, on purpose, or not at all.

Guarded are the model itself, and for each stream the innermost module around all of its writes, which some code calls
without the model's head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MethodType

from torch import nn

from attnres_compile.model.border import python_reads
from attnres_compile.model.in_force.calls import Calls
from attnres_compile.model.in_force.guarded_forward import (
    NAME,
    PLAIN_CLASS,
    Guard,
    forward_around,
    forward_on_module,
    guard_of,
    guarded_class,
)
from attnres_passes.ir.plan import Plan, Stream


def install(model: nn.Module, plan: Plan, calls: Calls, compiled_already: bool = False) -> None:
    """Guard a model.

    Args:
        model: with its parameters registered.
        plan: says where its streams are.
        calls: where its calls are counted.
        compiled_already: whether Dynamo has graphs of the forward that is there; it then goes on to compile that one,
            and Python runs the guard around it.
    """
    for path, streams in _places(model, plan).items():
        module = model.get_submodule(path)
        guard = Guard(calls, plan, path, streams, module.__dict__.get("forward"))
        module.__dict__[NAME] = guard
        if guard.forward is not None:
            module.__dict__["forward"] = MethodType(forward_around(forward_on_module, guard.forward), module)
        if not hasattr(type(module), PLAIN_CLASS):
            module.__class__ = guarded_class(type(module), compiled_already)


def connect(model: nn.Module, plan: Plan, calls: Calls) -> None:
    """Count the calls of a model whose parameters were replaced where the new ones say.

    Args:
        model: guarded; guarded now if it is not.
        plan, calls: of the parameters that it has now.
    """
    guards = [guard for module in model.modules() if (guard := guard_of(module)) is not None]
    if not guards:
        install(model, plan, calls)
    for guard in guards:
        guard.calls, guard.plan = calls, plan


def uninstall(model: nn.Module) -> None:
    """Take the guard off a model: its modules get their classes and their ``forward`` back."""
    python_reads.uninstall(model)
    for module in model.modules():
        guard = guard_of(module)
        if guard is None:
            continue
        del module.__dict__[NAME]
        if guard.forward is not None:
            module.__dict__["forward"] = guard.forward
        plain_class = type(module).__dict__.get(PLAIN_CLASS)
        # A class that something else derived from ours in the meantime, as FSDP does, stays: without the guard
        # object, its forward is the plain one.
        if plain_class is not None:
            module.__class__ = plain_class


def _places(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Paths of the modules to guard, with the streams whose innermost module each is."""
    places: dict[str, tuple[int, ...]] = {"": ()}
    for number, stream in enumerate(plan.streams):
        path = _path_around(model, stream)
        places[path] = (*places.get(path, ()), number)
    return places


def _path_around(model: nn.Module, stream: Stream) -> str:
    """The innermost module with a forward that all writes of a stream are in."""
    paths = [write.module.split(".") for write in stream.writes]
    # One path alone may be that of a sublayer, which does not hold the addition.
    parts = _common_start(paths) if len(set(map(tuple, paths))) > 1 else paths[0][:-1]
    while parts:
        try:
            if type(model.get_submodule(".".join(parts))).forward is not nn.Module.forward:
                break
        except AttributeError:
            pass  # the analysis names a module that the model reaches by another path, inside a wrapper
        parts = parts[:-1]
    return ".".join(parts)


def _common_start(paths: Sequence[Sequence[str]]) -> list[str]:
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    return [column[0] for column in columns]
