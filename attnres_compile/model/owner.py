"""Which model a graph belongs to: the module that owns the AttnRes parameters, or is to own them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule

from attnres_compile.model.border.part_of import is_part_of_prepared, prepared_root_of
from attnres_compile.model.errors import AttnResError, PartOfPreparedModelError, RegistrationError
from attnres_compile.model.parameters import (
    AttnResParameters,
    note_prepared,
    parameters_of,
    prepared_within,
)
from attnres_passes.torch_private.dynamo import FrameModule, frame_modules


@dataclass(frozen=True)
class Owner:
    """The model. frame: the module that the compiled frame reaches it through; parameters: None if not prepared."""

    model: nn.Module
    frame: FrameModule
    parameters: AttnResParameters | None


@dataclass(frozen=True)
class NoOwner:
    """A graph that no one model owns; that is an error only if it holds a stream."""

    error: AttnResError


def find_owner(gm: GraphModule) -> Owner | NoOwner:
    """The owner of the graph that Dynamo is handing to the backend."""
    frames = frame_modules(gm)
    if not frames:
        return _no_owner(
            "the compiled function reaches its parameters through no torch.nn.Module, so that the parameters of the "
            "reads cannot be registered; put the model into a module and compile that."
        )
    prepared = [(frame, model) for frame in frames for _, model in prepared_within(frame.module)]
    if len(prepared) == 1:
        frame, model = prepared[0]
        note_prepared(model)
        return Owner(model, frame, parameters_of(model))
    if len(prepared) > 1:
        return _no_owner(f"one compiled function runs {len(prepared)} prepared models; compile each of them by itself.")
    for frame in frames:
        if is_part_of_prepared(frame.module) or prepared_root_of(frame.module) is not None:
            return _owner_of_part(frame)
    if len(frames) > 1:
        names = ", ".join(sorted({type(frame.module).__name__ for frame in frames}))
        return _no_owner(
            f"the compiled function runs several modules ({names}), and the parameters of the reads need one owner; "
            "call attnres_compile.prepare(model, ..) on the one to rewrite, or compile that one alone."
        )
    return Owner(frames[0].module, frames[0], None)


def _no_owner(message: str) -> NoOwner:
    return NoOwner(RegistrationError(message))


def _owner_of_part(frame: FrameModule) -> Owner | NoOwner:
    root = prepared_root_of(frame.module)
    if root is None:
        return NoOwner(
            PartOfPreparedModelError(
                f"{type(frame.module).__name__} was taken out of a model that had been prepared; compile the "
                "prepared model as a whole, or call attnres_compile.unprepare on it first."
            )
        )
    note_prepared(root)
    return Owner(root, frame, parameters_of(root))
