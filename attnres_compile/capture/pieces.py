"""A capture in pieces: graphs that Dynamo hands over one by one while the model runs, and how they hang together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from attnres_passes.torch_private.captures.compiled_frame import compiled_frame
from attnres_passes.torch_private.dynamo import GraphEnd, frame_modules, graph_end, uncompiled_caller


@dataclass(frozen=True)
class Taken:
    """An input of a graph that is neither a parameter nor given to the model.

    position: among the inputs; graph, output: of the earlier graph that made it, None if Python code made it.
    """

    position: int
    graph: int | None
    output: int | None


@dataclass(frozen=True)
class Captured:
    """One graph of a model.

    inputs: the values of its placeholders, real parameters among them; end: how it ends, which is in a break too if
    the model itself goes on in Python after it; taken: what it takes from before it, in a capture in pieces.
    """

    gm: GraphModule
    inputs: tuple[Any, ...]
    end: GraphEnd
    taken: tuple[Taken, ...] = ()


class Pieces:
    """Collects the graphs of one call of a model.

    Memory says what is handed on: a tensor, its views and what is detached from it share theirs.
    """

    def __init__(self, model: nn.Module, given: Iterable[Any], first_break: GraphEnd) -> None:
        """Begin.

        Args:
            model: that is about to be called.
            given: its arguments.
            first_break: that keeps the model from being one graph, as far as it is known.
        """
        self.model = model
        self.first_break = first_break
        self._graphs: list[Captured] = []
        self._taken: dict[tuple[int, int], Taken] = {}
        self._own_codes: set[CodeType] = set()
        known = map(_memory, (*model.parameters(), *model.buffers(), *given))
        self._known = {memory for memory in known if memory is not None}
        self._made: dict[StorageWeakRef, tuple[int, int]] = {}

    def add(self, gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Take in a graph.

        Args:
            gm: as Dynamo hands it over.
            inputs: values of its placeholders.

        Returns:
            What runs in its place.
        """
        index = len(self._graphs)
        self._graphs.append(Captured(gm, tuple(inputs), self._end(gm)))

        def run(*values: Any) -> Any:
            self._note_inputs(index, values)
            results = gm.forward(*values)
            tensors = (leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor))
            for position, result in enumerate(tensors):
                memory = _memory(result)
                if memory is not None and memory not in self._known:
                    self._made[memory] = (index, position)
            return results

        return run

    def graphs(self) -> tuple[Captured, ...]:
        """All graphs, in the order in which Dynamo made them, which is that in which they first ran."""
        by_graph: dict[int, list[Taken]] = {}
        for (index, _), taken in self._taken.items():
            by_graph.setdefault(index, []).append(taken)
        return tuple(
            dataclasses.replace(graph, taken=tuple(by_graph.get(index, ()))) for index, graph in enumerate(self._graphs)
        )

    def forget(self) -> None:
        """Let go of the model, since Dynamo remembers for good what was handed to it, and through it this object."""
        self.__dict__.clear()

    def _end(self, gm: GraphModule) -> GraphEnd:
        """How a graph ends; the return of a function that the model calls from Python is no end of the model."""
        end, frame = graph_end(), compiled_frame()
        if frame.subject is self.model or frame.code in self._own_codes:
            self._own_codes.add(frame.code)
            return end
        if end.is_break or self.first_break.source:
            return end if end.is_break else self.first_break
        callers = (uncompiled_caller(part.module) for part in frame_modules(gm))
        source = next(filter(None, callers), f"{frame.code.co_filename}:{frame.code.co_firstlineno}")
        return GraphEnd(True, "Python goes on there outside of any graph", source)

    def _note_inputs(self, index: int, values: tuple[Any, ...]) -> None:
        for position, value in enumerate(values):
            memory = _memory(value)
            if memory is None or memory in self._known or (index, position) in self._taken:
                continue
            graph, output = self._made.get(memory, (None, None))
            self._taken[index, position] = Taken(position, graph, output)


def _memory(value: Any) -> StorageWeakRef | None:
    """What a tensor keeps its numbers in; None for what has no such thing."""
    if not isinstance(value, Tensor):
        return None
    try:
        return StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError):  # a subclass that holds other tensors
        return None
