"""Analysis: where to cut a stream into chunks, evenly, by cost, or at modules that the user names.

A cut stands between two sublayers, at a state of the stream that is read: then all that crosses it is the sources
of the next read. A chunk has at least one sublayer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch.fx import Node
from torch.utils._pytree import tree_map_only

from attnres_kernels.errors import closest
from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref
from attnres_passes.ir.plan import Stream
from attnres_passes.ranks.layout import StageError
from attnres_passes.torch_private.operators import flop_formula


def possible_cuts(stream: Stream) -> tuple[int, ...]:
    """The states after which a stream may be cut: those that are read, after the first and before the last write.

    Sublayers that read one state side by side, such as a parallel attention and MLP, stay together.
    """
    read = {read.state for read in stream.reads}
    return tuple(state for state in range(1, len(stream.writes)) if state in read)


def even_cuts(writes: int, chunks: int) -> tuple[int, ...]:
    """Cuts into chunks that differ by at most one write.

    Args:
        writes: of the stream.
        chunks: how many are wanted.

    Raises:
        StageError: there are more chunks than writes.
    """
    if not 1 <= chunks <= writes:
        raise _too_many(chunks, writes)
    return tuple(chunk * writes // chunks for chunk in range(chunks + 1))


def balanced_cuts(stream: Stream, chunks: int, costs: Sequence[int]) -> tuple[int, ...]:
    """The cuts with the smallest most expensive chunk; among those, the ones with the least sum of squares.

    Args:
        stream: what is cut.
        chunks: how many are wanted.
        costs: of the sublayers ``1 .. W``; those of the first and the last include what comes before and after.

    Raises:
        StageError: there are more chunks than sublayers that can be cut apart.
    """
    ends = (*possible_cuts(stream), len(stream.writes))
    if chunks > len(ends):
        raise _too_many(chunks, len(ends))
    total = [0, *accumulate(costs)]
    units = [total[end] - total[begin] for begin, end in zip((0, *ends), ends, strict=False)]
    states = (0, *ends)
    return tuple(states[place] for place in _least_squares(units, chunks, _bottleneck(units, chunks)))


def cuts_at_modules(stream: Stream, chunks: int, paths: Sequence[str]) -> tuple[int, ...]:
    """Cuts before the first sublayer inside each of the named modules.

    Args:
        stream: what is cut.
        chunks: how many are wanted.
        paths: of modules, one for every chunk but the first.

    Raises:
        StageError: a module is unknown, their number or order is wrong, or the stream cannot be cut there.
    """
    if len(paths) != chunks - 1:
        raise StageError(f"{len(paths)} cut points for {chunks} chunks; name the first module of each but the first.")
    cuts = [0]
    possible = possible_cuts(stream)
    for path in paths:
        cut = _write_inside(stream, path) - 1
        if cut <= cuts[-1]:
            raise StageError(f"the cut at {path!r} leaves no sublayer before it; name modules in their order.")
        if cut not in possible:
            raise StageError(
                f"the stream cannot be cut at {path!r}: its sublayer reads what the one before it reads, so both "
                "belong to one chunk; name a module whose input is read from the stream there."
            )
        cuts.append(cut)
    return (*cuts, len(stream.writes))


def _write_inside(stream: Stream, path: str) -> int:
    """Number, from 1, of the first write that is made, or whose input is read, inside the module ``path``."""
    readers: dict[int, list[str]] = {}
    for read in stream.reads:
        readers.setdefault(read.state + 1, []).append(read.module)
    paths: set[str] = set()
    for number, write in enumerate(stream.writes, start=1):
        places = (write.module, *readers.get(number, ()))
        if any(place == path or place.startswith(f"{path}.") for place in places):
            return number
        paths.update(places)
    parents = {path.rpartition(".")[0] for path in paths}
    close = closest(path, sorted(paths | parents), cutoff=0.0)
    raise StageError(f"no sublayer of stream {stream.name!r} is inside {path!r}; did you mean {close[0]!r}?")


def _bottleneck(units: Sequence[int], chunks: int) -> int:
    """The least bound under which ``units`` fit into ``chunks`` runs."""
    least = max(units)
    return least + bisect_left(range(least, sum(units)), True, key=lambda bound: _runs_under(units, bound) <= chunks)


def _runs_under(units: Sequence[int], bound: int) -> int:
    runs, filled = 1, 0
    for unit in units:
        if filled + unit > bound:
            runs, filled = runs + 1, 0
        filled += unit
    return runs


def _least_squares(units: Sequence[int], chunks: int, bound: int) -> list[int]:
    """Begin of each run and the end of the last, for ``chunks`` runs under ``bound`` with the least sum of squares."""
    total = [0, *accumulate(units)]
    best: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for run in range(1, chunks + 1):
        row: dict[int, tuple[int, int]] = {}
        for end in range(run, len(units) - (chunks - run) + 1):
            begin = end - 1
            while begin >= 0 and (cost := total[end] - total[begin]) <= bound:
                if begin in best[-1]:
                    candidate = (best[-1][begin][0] + cost * cost, begin)
                    row[end] = min(row.get(end, candidate), candidate)
                begin -= 1
        best.append(row)
    places = [len(units)]
    for row in reversed(best[1:]):
        places.append(row[places[-1]][1])
    return places[::-1]


def _too_many(chunks: int, sublayers: int) -> StageError:
    return StageError(
        f"{chunks} chunks for {sublayers} sublayer{'' if sublayers == 1 else 's'} that can be cut apart; every chunk "
        "needs one, so take fewer stages or fewer virtual stages."
    )


def sublayer_flops(
    trace: AtenTrace, positions: Mapping[Node, int | None], nodes: Sequence[Node], writes: int
) -> list[int]:
    """FLOPs of the forward of the sublayers ``1 .. writes``; two per multiplication and addition.

    What comes before the stream counts to the first sublayer, what comes after it to the last one.

    Args:
        trace: of a copy of the graph that ``nodes`` is of, node for node.
        positions: the sublayer that each node belongs to; None for what no sublayer precedes.

    Raises:
        StageError: a size is dynamic.
    """
    flops = [0] * writes
    for op in trace.ops:
        position = positions[nodes[op.node]]
        flops[(position or 1) - 1] += _op_flops(trace, op)
    return flops


def _op_flops(trace: AtenTrace, op: Op) -> int:
    """FLOPs of one operation, by torch's formulas; 0 for those that have none, such as elementwise ones."""
    formula = flop_formula(op.target)
    if formula is None:
        return 0
    args, kwargs = tree_map_only(Ref, lambda ref: _shape(trace, ref), (op.args, op.kwargs))
    outputs: Any = [list(trace.values[value].shape) for value in op.outputs]
    return int(formula(*args, **kwargs, out_val=outputs[0] if len(outputs) == 1 else outputs))


def _shape(trace: AtenTrace, ref: Ref) -> list[int]:
    shape = trace.values[ref.value].shape
    if not all(isinstance(size, int) for size in shape):
        raise StageError(
            f"a tensor of shape {shape} has a dynamic size, and pipeline stages have fixed ones; compile with "
            "dynamic=False, on inputs of one size."
        )
    return list(shape)
