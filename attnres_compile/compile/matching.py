"""Which planned streams a captured graph holds, and which parameters its reads use.

A prepared model is captured again when it is compiled, maybe in another mode, with other optional inputs, or as a
part of a larger module. Streams are recognised by the modules of their writes, reads by their place in the stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from attnres_compile.model.errors import AttnResError, GraphBreakError, StalePlanError
from attnres_compile.model.in_force.guarded_forward import Guard
from attnres_compile.model.parameters import AttnResParameters
from attnres_compile.model.planned_reads import PlannedReads
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.ir import provenance
from attnres_passes.ir.plan import Plan, Read, Stream
from attnres_passes.ir.read_id import ReadId
from attnres_passes.torch_private.dynamo import GraphEnd


def match(found: Plan, planned: Plan, trace: AtenTrace, end: GraphEnd, within: str = "") -> PlannedReads:
    """Match the streams of one graph with those of the plan of its model.

    Args:
        found: the graph's own plan.
        planned: the model's.
        trace: of the graph.
        end: how the graph ends.
        within: path, in the model, of the module that the graph was captured of.

    Returns:
        Nothing planned for a graph that has nothing to do with the plan, such as a loss after a graph break.

    Raises:
        StalePlanError: it holds a planned stream in part, or with reads that the plan does not know.
        GraphBreakError: the same, of a graph that ends in a break.
    """
    reads: dict[ReadId, ReadId] = {}
    taken: set[int] = set()
    for s, stream in enumerate(found.streams):
        p = next((p for p, other in enumerate(planned.streams) if p not in taken and _same(stream, other)), None)
        if p is None:
            raise _error_at(end)(_changed(stream, planned, end))
        taken.add(p)
        reads.update(_match_reads(s, stream, p, planned.streams[p]))
    for p, other in enumerate(planned.streams):
        if p not in taken and _holds_part(trace, other, within):
            raise _error_at(end)(_missing(other, end))
    return PlannedReads(reads)


def check_due(guards: Sequence[Guard], added: AttnResParameters | None, matched: PlannedReads, end: GraphEnd) -> None:
    """Check that a graph holds the streams of all guarded modules that it runs, also where no module tells them apart.

    Args:
        guards: of those modules.
        added: parameters of the model that the graph was matched with; None without one.
        matched: its reads in the plan of that model.
        end: how the graph ends.

    Raises:
        StalePlanError: it runs a module without its stream.
    """
    held = {planned.stream for planned in matched.planned.values()}
    for guard in guards:
        for number in guard.streams:
            if added is None or guard.calls is not added.calls or number not in held:
                raise _error_at(end)(_missing(guard.plan.streams[number], end))


def _same(found: Stream, planned: Stream) -> bool:
    """Whether both have their writes in equal modules, up to the path of the module that was compiled."""
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


def _match_reads(s: int, found: Stream, p: int, planned: Stream) -> dict[ReadId, ReadId]:
    theirs = {key: k for key, k, _ in _keyed(planned.reads)}
    reads = {}
    for key, k, read in _keyed(found.reads):
        if key not in theirs:
            raise StalePlanError(
                f"the graph of stream {planned.name!r} reads the state after {read.state} writes in "
                f"{read.module or 'the model'} ({read.source}), which the plan does not hold; prepare the model with "
                "the same arguments that it is called with (output_hidden_states, for one), after "
                "attnres_compile.unprepare(model)."
            )
        reads[ReadId(s, k)] = ReadId(p, theirs.pop(key))
    for state, normed, _ in theirs:
        # A state that was returned when the model was prepared, and is not now, leaves its parameters unused.
        if normed:
            raise StalePlanError(
                f"the plan of stream {planned.name!r} has a read after {state} writes that this graph does not hold; "
                "prepare the model with the same arguments that it is called with, after "
                "attnres_compile.unprepare(model)."
            )
    return reads


def _keyed(reads: tuple[Read, ...]) -> Iterator[tuple[tuple[int, bool, int], int, Read]]:
    """The reads with two sources or more: state, whether normed, and number among those; index; and the read."""
    seen: Counter[tuple[int, bool]] = Counter()
    for k, read in enumerate(reads):
        if read.num_sources > 1:
            place = (read.state, read.normed)
            yield (*place, seen[place]), k, read
            seen[place] += 1


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
