"""A compiled graph that records: compiled once more, with its statistics in it, at its first call in a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnres_compile.recording.live import Layout, Place, Recording
from attnres_compile.recording.recorded import Sublayer
from attnres_compile.recording.sublayers import find_sublayers
from attnres_passes.ir.plan import Plan
from attnres_passes.pipeline import run_later_passes
from attnres_passes.rewrite.record import record
from attnres_passes.rewrite.rewrite import ParameterSlot, Rewritten
from attnres_passes.torch_private.compile_later import compile_later, unseen_by_checkpoints


@dataclass(frozen=True)
class _Built:
    compiled: Callable[..., Any]
    layout: Layout


class GraphRecorder:
    """Keeps the rewritten graph, and nothing else until a recording is open.

    plan: of this graph; planned: from a slot of this graph to that of the plan of the model.
    """

    def __init__(
        self, result: Rewritten, plan: Plan, mode: str | None, planned: Callable[[ParameterSlot], ParameterSlot]
    ) -> None:
        self.result, self.plan, self.mode = result, plan, mode
        self.slots = {slot: planned(slot) for slot in result.slots if slot.name == "query"}
        self.built: dict[bool, _Built] = {}
        self.sublayers: dict[Place, Sublayer] = {}

    def __call__(
        self, recording: Recording, plain: Callable[..., Any], args: Sequence[Any], added: Sequence[Tensor]
    ) -> Any:
        """Call the graph on its own arguments and the parameters of its reads, as ``plain`` does, and record."""
        with_gradients = torch.is_grad_enabled()
        if with_gradients not in self.built:
            with unseen_by_checkpoints():
                self.built[with_gradients] = self._build(with_gradients, args, added)
        built = self.built[with_gradients]
        if not recording.accepts(built.layout):
            return plain(*args, *added)
        if recording.needs_sublayers(built.layout):
            recording.note_sublayers(self._sublayers(args, added))
        probes = [recording.probes(built.layout, added[0].device)] if built.layout.num_probes else []
        *outputs, statistics = built.compiled(*args, *probes, *added)
        recording.add(built.layout, statistics)
        return tuple(outputs)

    def _build(self, with_gradients: bool, args: Sequence[Any], added: Sequence[Tensor]) -> _Built:
        recorded = record(self.result, with_gradients)
        passed = run_later_passes(recorded.result, recorded.result.gm, self.plan)
        places = tuple(self._place(entry.kind, entry.stream, entry.index) for entry in recorded.entries)
        layout = Layout(recorded.entries, places, recorded.num_probes)
        probes = (
            [torch.zeros(recorded.num_probes, device=added[0].device, requires_grad=True)] if with_gradients else []
        )
        inner = self.plan.config.inner
        compiled = compile_later(passed.lowered, [*args, *probes, *added], inner, self.mode)
        return _Built(compiled, layout)

    def _sublayers(self, args: Sequence[Any], added: Sequence[Tensor]) -> Mapping[Place, Sublayer]:
        """What the sublayers are, found out once: at the first call with more than one token."""
        if not self.sublayers:
            reads, writes = find_sublayers(self.result, [*args, *added])
            self.sublayers = {
                **{self._place("read", *place): sublayer for place, sublayer in reads.items()},
                **{self._place("write", *place): sublayer for place, sublayer in writes.items()},
            }
        return self.sublayers

    def _place(self, kind: str, stream: int, index: int) -> Place:
        """The place in the plan of the model of a read or write of this graph."""
        own = [k for k, read in enumerate(self.plan.streams[stream].reads) if read.num_sources > 1]
        slot = own.index(index) if kind == "read" else 0
        planned = self.slots[ParameterSlot(stream, slot, "query")]
        return kind, planned.stream, planned.read if kind == "read" else index
