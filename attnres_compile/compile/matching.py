"""Which planned streams a captured graph holds, and which parameters its reads use.

A prepared model is captured again when it is compiled, maybe in another mode, with other optional inputs, or as a
part of a larger module. Streams are recognised by the modules of their writes, reads by their place in the stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from attnres_compile.model.errors import AttnResError, GraphBreakError, StalePlanError
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.ir import provenance
from attnres_passes.ir.plan import Plan, Read, Stream
from attnres_passes.rewrite.rewrite import ParameterSlot
from attnres_passes.torch_private.dynamo import GraphEnd


@dataclass(frozen=True)
class Match:
    """planned_slot: for each (stream, read) of the graph, the slot of the plan that holds its parameters."""

    planned_slot: dict[tuple[int, int], tuple[int, int]]

    def slot(self, slot: ParameterSlot) -> ParameterSlot:
        stream, read = self.planned_slot[slot.stream, slot.read]
        return dataclasses.replace(slot, stream=stream, read=read)


def match(found: Plan, planned: Plan, trace: AtenTrace, end: GraphEnd, within: str = "") -> Match:
    """Match the streams of one graph with those of the plan of its model.

    within: path, in that model, of the module that the graph was captured of. A graph that has nothing to do with
    the plan (a loss after a graph break) gives an empty match. Raises StalePlanError, or GraphBreakError where a break
    ends the graph, if it holds a planned stream only in part, or with reads that the plan does not know.
    """
    slots: dict[tuple[int, int], tuple[int, int]] = {}
    taken: set[int] = set()
    for s, stream in enumerate(found.streams):
        p = next((p for p, other in enumerate(planned.streams) if p not in taken and _same(stream, other)), None)
        if p is None:
            raise _error_at(end)(_changed(stream, planned, end))
        taken.add(p)
        slots.update(_match_reads(s, stream, p, planned.streams[p]))
    for p, other in enumerate(planned.streams):
        if p not in taken and _holds_part(trace, other, within):
            raise _error_at(end)(_missing(other, end))
    return Match(slots)


def _same(found: Stream, planned: Stream) -> bool:
    """The same writes in the same modules, up to the path of the module that was compiled."""
    ours, theirs = _write_modules(found), _write_modules(planned)
    if found.width != planned.width or len(ours) != len(theirs):
        return False
    prefixes = {_prefix(left, right) for left, right in zip(ours, theirs, strict=True)}
    return len(prefixes) == 1 and None not in prefixes


def _write_modules(stream: Stream) -> list[str]:
    return [write.module for write in stream.writes]


def _prefix(left: str, right: str) -> tuple[str, str] | None:
    """What has to be put before one path to get the other, or None if neither ends with the other."""
    if left == right:
        return ("", "")
    if left.endswith(f".{right}") or not right:
        return (left.removesuffix(right), "")
    if right.endswith(f".{left}") or not left:
        return ("", right.removesuffix(left))
    return None


def _match_reads(s: int, found: Stream, p: int, planned: Stream) -> dict[tuple[int, int], tuple[int, int]]:
    ours = list(_keyed(found.parametrized_reads))
    theirs = {key: slot for slot, (key, _) in enumerate(_keyed(planned.parametrized_reads))}
    slots = {}
    for slot, (key, read) in enumerate(ours):
        if key not in theirs:
            raise StalePlanError(
                f"the graph of stream {planned.name!r} reads the state after {read.state} writes in "
                f"{read.module or 'the model'} ({read.source}), which the plan does not hold; prepare the model with "
                "the same arguments that it is called with (output_hidden_states, for one), after "
                "attnres_compile.unprepare(model)."
            )
        slots[s, slot] = (p, theirs.pop(key))
    for state, normed, _ in theirs:
        # A state that was returned when the model was prepared, and is not now, leaves its parameters unused.
        if normed:
            raise StalePlanError(
                f"the plan of stream {planned.name!r} has a read after {state} writes that this graph does not hold; "
                "prepare the model with the same arguments that it is called with, after "
                "attnres_compile.unprepare(model)."
            )
    return slots


def _keyed(reads: tuple[Read, ...]) -> Iterator[tuple[tuple[int, bool, int], Read]]:
    """Each read under its state, whether it is normed, and its number among those."""
    seen: dict[tuple[int, bool], int] = {}
    for read in reads:
        place = (read.state, read.normed)
        seen[place] = seen.get(place, -1) + 1
        yield (*place, seen[place]), read


def _holds_part(trace: AtenTrace, stream: Stream, within: str) -> bool:
    """Whether some node of the graph was traced in a module that writes or reads ``stream``.

    The compiled module may lie around the model, so a path counts wherever in another one it stands.
    """
    modules = {write.module for write in stream.writes} | {read.module for read in stream.reads}
    paths = {provenance.module_path(node) for node in trace.nodes if node.op not in ("placeholder", "output")}
    for path in paths:
        parts = [part for part in (*within.split("."), *path.split(".")) if part]
        spans = (parts[start:stop] for start in range(len(parts)) for stop in range(start + 1, len(parts) + 1))
        if any(".".join(span) in modules for span in spans):
            return True
    return False


def _changed(found: Stream, planned: Plan, end: GraphEnd) -> str:
    expected = ", ".join(f"{stream.name!r} with {len(stream.writes)} writes" for stream in planned.streams)
    return (
        f"a graph of the prepared model holds a residual stream with {len(found.writes)} writes in {found.name!r}, "
        f"where the plan has {expected}{_broken(end)}. {_remedy(end)}"
    )


def _missing(stream: Stream, end: GraphEnd) -> str:
    return (
        f"a graph of the prepared model runs sublayers of the planned stream {stream.name!r} without holding the "
        f"stream{_broken(end)}. {_remedy(end)}"
    )


def _error_at(end: GraphEnd) -> type[AttnResError]:
    return GraphBreakError if end.is_break else StalePlanError


def _broken(end: GraphEnd) -> str:
    return f"; a graph break ends it at {end.source} ({end.reason})" if end.is_break else ""


def _remedy(end: GraphEnd) -> str:
    if end.is_break:
        return "Take that line out of the forward, so that one graph holds the whole stream."
    return (
        "Compile the prepared model as a whole, or call attnres_compile.unprepare(model) and prepare it again if it "
        "has changed. Under DistributedDataParallel, which splits graphs, set torch._dynamo.config.optimize_ddp=False."
    )
