"""The states that are between the graphs of a model, and what each is the sum of.

A graph that is a piece of a model gives a state as the plain tensor that it is, for whatever Python does with it. Its
sources are remembered here for as long as that tensor lives, by the tensor itself: calls, threads and micro-batches
cannot take one another's, and nothing is left behind by a call that fails. A tensor that nobody gave is no state; one
that was changed in place is none any more.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnres_compile.model.errors import BorderError
from attnres_passes.analyses import blocks
from attnres_passes.torch_private.borders.tensor_identity import (
    TensorTable,
    changes_gradient,
    is_alias_of,
    is_passed_on,
    version_of,
)

if TYPE_CHECKING:
    from attnres_compile.model.parameters import AttnResParameters


@dataclass(frozen=True)
class Sources:
    """What a state is the sum of: completed blocks, and the open partial sum if a block is open.

    added: the AttnRes parameters of the model; stream: of its plan; state: how many writes it holds; recorded: whether
    gradients were recorded when it was made; groups: of ranks over which its tokens are cut; versions: of the memory of
    the state and of its sources then.
    """

    added: AttnResParameters
    stream: int
    state: int
    completed: tuple[Tensor, ...]
    partial: Tensor | None
    recorded: bool
    groups: tuple[str, ...] = ()
    versions: tuple[int, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, the open partial sum last."""
        return [*self.completed, *(() if self.partial is None else (self.partial,))]

    def detached(self) -> Sources:
        """The sources of the state without what leads to it."""
        partial = None if self.partial is None else self.partial.detach()
        return replace(self, completed=tuple(one.detach() for one in self.completed), partial=partial)


_states: TensorTable[Sources] = TensorTable()
_lock = threading.Lock()


def note_state(tensor: Tensor, sources: Sources) -> None:
    """Remember the sources of a state that leaves a graph, for as long as it lives.

    Args:
        tensor: the state.
        sources: of it; the root is its own source, and is not to keep itself alive.
    """
    if any(source is tensor for source in sources.completed):
        own = tuple(tensor.view_as(tensor) if source is tensor else source for source in sources.completed)
        sources = replace(sources, completed=own)
    sources = replace(sources, versions=_versions(tensor, sources))
    with _lock:
        _states.put(tensor, sources)


def _versions(tensor: Tensor, sources: Sources) -> tuple[int, ...]:
    return (version_of(tensor), *map(version_of, sources.tensors))


def sources_of(tensor: Tensor) -> Sources | None:
    """The sources of a state that another graph gave; None for what is no state.

    FSDP passes the inputs of a layer on through an autograd function: what it gives is the state, in the same memory.
    What was detached since is the state without what leads to it.

    Args:
        tensor: on its way into a graph.

    Raises:
        BorderError: its gradients would not be those of its sources.
    """
    with _lock:
        known = _states.get(tensor)
        found = (tensor, known) if known is not None else _states.find(lambda one: is_alias_of(tensor, one), tensor)
    if found is None or found[1].versions[0] != version_of(tensor):
        return None
    state, sources = found
    if sources.versions != _versions(tensor, sources):
        raise BorderError(
            f"what was added to the stream before the state after {sources.state} writes has been changed in place "
            "since, between two compiled parts of the model; change a copy of it, or compile the whole model."
        )
    planned = sources.added.plan.streams[sources.stream]
    expected = blocks.sources_of_read(sources.state, planned.block_size)
    if len(sources.tensors) != expected:
        raise BorderError(
            f"the state after {sources.state} writes of {planned.name!r} came with {len(sources.tensors)} sources "
            f"where the plan has {expected}; report this."
        )
    if not torch.is_grad_enabled():
        return sources
    if tensor.requires_grad and not sources.recorded:
        raise BorderError(
            f"the state after {sources.state} writes was made without gradients and is read with gradients now, as "
            "torch.utils.checkpoint does with use_reentrant=True around parts that are compiled one by one: its "
            "sources would get none. Pass use_reentrant=False, or compile the whole model."
        )
    if state is not tensor and state.requires_grad and not tensor.requires_grad:
        return sources.detached()
    if state is not tensor and tensor.requires_grad and not is_passed_on(tensor):
        through = tensor.grad_fn.name() if tensor.grad_fn is not None else "requires_grad_()"
        raise BorderError(
            f"the state after {sources.state} writes was passed through {through} between two compiled parts of the "
            "model, whose backward its sources would not go through. Move that into one of the parts, or compile the "
            "whole model."
        )
    if changes_gradient(tensor):
        raise BorderError(
            f"a hook is registered on the gradient of the state after {sources.state} writes, between two compiled "
            "parts of the model; the gradients of its sources do not pass through it. Take the hook off, or register "
            "it on the output of a sublayer."
        )
    return sources
