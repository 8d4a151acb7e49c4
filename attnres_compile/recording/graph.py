"""A compiled graph that records: compiled once more, with its statistics in it, at its first call in a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnres_compile.model.planned_reads import PlannedReads
from attnres_compile.recording.live import Layout, Recording
from attnres_compile.recording.recorded import Sublayer
from attnres_compile.recording.sublayers import find_sublayers
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId, WriteId
from attnres_passes.pipeline import lower_rewritten
from attnres_passes.rewrite.record import record
from attnres_passes.rewrite.rewrite import Rewritten
from attnres_passes.torch_private.inner_compilers import compile_later
from attnres_passes.torch_private.state import unseen_by_checkpoints


@dataclass(frozen=True)
class _RecordingGraph:
    """What was compiled, which gives statistics behind its outputs, and what those are about."""

    compiled: Callable[..., Any]
    layout: Layout


class GraphRecorder:
    """Keeps the rewritten graph, and nothing else until a recording is open.

    plan: of this graph; matched: its reads in the plan of the model; mode: of the inner compiler.
    """

    def __init__(self, rewritten: Rewritten, plan: Plan, mode: str | None, matched: PlannedReads) -> None:
        self.rewritten, self.plan, self.mode, self.matched = rewritten, plan, mode, matched
        self.built: dict[bool, _RecordingGraph] = {}
        self.sublayers: dict[ReadId | WriteId, Sublayer] = {}

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

    def _build(self, with_gradients: bool, args: Sequence[Any], added: Sequence[Tensor]) -> _RecordingGraph:
        recorded = record(self.rewritten, with_gradients)
        levels = lower_rewritten(recorded.result.gm, self.plan)
        planned = tuple(self._planned(entry.about) for entry in recorded.entries)
        layout = Layout(recorded.entries, planned, recorded.num_probes)
        device, inner = added[0].device, self.plan.config.inner
        probes = [torch.zeros(recorded.num_probes, device=device, requires_grad=True)] if with_gradients else []
        compiled = compile_later(levels.closed, [*args, *probes, *added], inner, self.mode)
        return _RecordingGraph(compiled, layout)

    def _sublayers(self, args: Sequence[Any], added: Sequence[Tensor]) -> Mapping[ReadId | WriteId, Sublayer]:
        """What the sublayers are, found out once: at the first call with more than one token."""
        if not self.sublayers:
            found = find_sublayers(self.rewritten, [*args, *added])
            self.sublayers = {self._planned(about): sublayer for about, sublayer in found.items()}
        return self.sublayers

    def _planned(self, about: ReadId | WriteId) -> ReadId | WriteId:
        """A read or a write of this graph in the plan of the model."""
        return self.matched.planned[about] if isinstance(about, ReadId) else self.matched.write(about)
