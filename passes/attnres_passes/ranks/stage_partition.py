"""Analysis: where to cut a stream into chunks, evenly, by cost, or at modules that the user names.

A cut stands between two sublayers, at a state of the stream that is read: then all that crosses it is the sources
of the next read. A chunk has at least one sublayer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from attnres_kernels.errors import closest
from attnres_passes.ir.plan import Stream
from attnres_passes.ranks.stage_layout import StageError


def possible_cuts(stream: Stream) -> tuple[int, ...]:
    """The states after which a stream may be cut: those that are read, after the first and before the last write.

    Sublayers that read one state side by side, such as a parallel attention and MLP, stay together.
    """
    read = {read.state for read in stream.reads}
    return tuple(state for state in range(1, len(stream.writes)) if state in read)


def even_cuts(writes: int, chunks: int) -> tuple[int, ...]:
    """Cuts into chunks that differ by at most one write. Raises StageError with more chunks than writes."""
    if not 1 <= chunks <= writes:
        raise _too_many(chunks, writes)
    return tuple(chunk * writes // chunks for chunk in range(chunks + 1))


def balanced_cuts(stream: Stream, chunks: int, costs: Sequence[int]) -> tuple[int, ...]:
    """The cuts with the smallest most expensive chunk; among those, the ones with the least sum of squares.

    costs: of the sublayers ``1 .. W``, what comes before the first and after the last one included in theirs.
    Raises StageError with more chunks than the stream has sublayers that can be cut apart.
    """
    ends = (*possible_cuts(stream), len(stream.writes))
    if chunks > len(ends):
        raise _too_many(chunks, len(ends))
    total = [0, *accumulate(costs)]
    units = [total[end] - total[begin] for begin, end in zip((0, *ends), ends, strict=False)]
    states = (0, *ends)
    return tuple(states[place] for place in _least_squares(units, chunks, _bottleneck(units, chunks)))


def cuts_at_modules(stream: Stream, chunks: int, paths: Sequence[str]) -> tuple[int, ...]:
    """Cuts before the first sublayer inside each of the named modules, one for every chunk but the first.

    Raises StageError for an unknown module, the wrong number of them or the wrong order, or a place that cannot be cut.
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
    low, high = max(units), sum(units)
    while low < high:
        middle = (low + high) // 2
        if _runs_under(units, middle) <= chunks:
            high = middle
        else:
            low = middle + 1
    return low


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
