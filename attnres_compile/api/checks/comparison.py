"""Two runs of the graphs of one model, compared output by output and read by read.

Where a model amplifies rounding (a norm that subtracts a mean which is large beside what it leaves, many layers deep),
two right ways to compute it differ by more than any fixed tolerance. So a run that is off is held against a third one,
in which every read is moved to a neighbouring number: what that moves, rounding may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from attnres_compile.api.verification import TOLERANCES, Check, dtype_name, relative_error
from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.compile.graph_runs import Run
from attnres_passes.analyses.streams import Analysis
from attnres_passes.ir.read_id import ReadId

ROUNDINGS = 8.0
"""A read is a few sums and products of what it is made of, each rounded: it may be off by what so many roundings of the
reads do."""
MOST_AMPLIFIED = 1e-2
"""A model whose reads one rounding moves by more than this gives no numbers to compare."""


def compare(
    name: str, graph: AnalysedGraph, expected: Run, found: Run, moved: Callable[[], Run] | None = None
) -> Check:
    """The check that two runs of a graph give the same.

    Args:
        name: of the check.
        graph: that was run, of which the tolerance follows.
        expected, found: the runs.
        moved: repeats the expected run with every read off by one rounding; asked only if something is off.
    """
    dtype = least_precise(graph.analysis)
    tolerance = TOLERANCES.get(dtype, 5e-2)
    errors = _errors(expected, found)
    worst = max(errors.values(), default=0.0)
    off = [one for one, error in errors.items() if not error <= tolerance]
    if not off:
        return Check(name, dtype_name(dtype), True, worst, tolerance)
    rounding = {} if moved is None else _errors(expected, moved())
    largest = max(rounding.values(), default=0.0)
    if largest <= MOST_AMPLIFIED:
        off = [one for one in off if not errors[one] <= ROUNDINGS * rounding.get(one, 0.0)]
        if not off:
            note = f"one rounding of the reads moves what follows by {largest:.1e}, which is what this is held against"
            return Check(name, dtype_name(dtype), True, worst, ROUNDINGS * largest, note)
    reads = [_described(graph, one) for one in off if isinstance(one, ReadId)]
    return Check(
        name, dtype_name(dtype), False, worst, tolerance, next(iter(reads), "no read is off, but an output is")
    )


def _errors(expected: Run, found: Run) -> dict[ReadId | int, float]:
    """How far each read is off, in order, and then each output."""
    errors: dict[ReadId | int, float] = {
        read: relative_error(expected.reads[read], found.reads[read]) for read in sorted(expected.reads)
    }
    pairs = zip(expected.outputs, found.outputs, strict=True)
    return errors | {number: relative_error(left, right) for number, (left, right) in enumerate(pairs)}


def _described(graph: AnalysedGraph, read_id: ReadId) -> str:
    stream = graph.analysis.plan.streams[read_id.stream]
    read = stream.reads[read_id.index]
    return f"read {read_id} of {stream.name}: {read.module} ({read.source}), {read.num_sources} sources"


def least_precise(analysis: Analysis) -> torch.dtype:
    """The floating dtype with the largest eps that anything depending on a stream is computed in.

    Args:
        analysis: of a captured graph.
    """
    reached = {stream_nodes.trunk.order[0] for stream_nodes in analysis.stream_nodes}
    for op in analysis.trace.ops:
        if not reached.isdisjoint(op.inputs):
            reached.update(op.outputs)
    return coarsest({value.dtype for number in reached if (value := analysis.trace.values[number]).is_floating})


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The one with the largest eps; float32 of none.

    Args:
        dtypes: floating ones.
    """
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
