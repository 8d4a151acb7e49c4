"""How the backward of several reads into completed blocks is cut into launches: so that it moves the fewest bytes.

Every launch reads the gradients of its reads; a launch of further reads reads the sources again, and the gradients that
the launch before it wrote, to add to them. Sums for the keys that registers do not hold cost a read of the sources. All
cuts into pieces of the sizes that matter are compared, by ``moved``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from attnres_kernels.depth_attention.generated import moved, tiling
from attnres_kernels.depth_attention.generated.specs import (
    MOST_READS,
    MOST_SOURCES,
    MOST_TILES_OF_KEYS,
    SourcesBackwardSpec,
)


@dataclass(frozen=True)
class Launch:
    """first: of its sources, and of its reads among those with a gradient."""

    first_source: int
    first_read: int
    spec: SourcesBackwardSpec

    @property
    def kernels(self) -> int:
        return 1 if self.spec.sums_keys else 2


def tiles_held(reads: int, width: int) -> int:
    """Tiles of a row for which one launch holds sums for the keys in registers: all of them, or none."""
    tiles = -(-width // tiling.steps(width).columns)
    return tiles if reads * tiles <= MOST_TILES_OF_KEYS else 0


@cache
def cut(sources: int, reads: tuple[int, ...], carried: tuple[int, ...], width: int) -> tuple[Launch, ...]:
    """The launches, in order, with the fewest bytes; of equals, the fewest kernels.

    Args:
        sources: completed blocks.
        reads: those that have a gradient.
        carried: the sources that come with a gradient from later reads.
        width: of the stream.
    """

    def cost(launches: tuple[Launch, ...]) -> tuple[int, int, int]:
        moves = sum(moved.of_sources_backward(x.spec).total for x in launches)
        return moves, sum(x.kernels for x in launches), len(launches)

    return min(_cuts(sources, reads, carried, width), key=cost, default=())


@cache
def moved_by_launches(sources: int, reads: int, width: int, carried: bool = True) -> int:
    """What all launches move per token, in units of the width. carried: whether later reads gave gradients."""
    launches = cut(sources, tuple(range(reads)), tuple(range(sources)) if carried else (), width)
    return sum(moved.of_sources_backward(launch.spec).total for launch in launches)


def _cuts(sources: int, reads: tuple[int, ...], carried: tuple[int, ...], width: int) -> Iterator[tuple[Launch, ...]]:
    for of_sources, of_reads in product(_pieces(sources, MOST_SOURCES), _pieces(len(reads), MOST_READS)):
        yield tuple(
            Launch(i, s, _spec(range(i, i + n), reads[s : s + count], carried, s > 0, width))
            for s, count in of_reads
            for i, n in of_sources
        )


def _spec(
    sources: range, reads: tuple[int, ...], carried: tuple[int, ...], goes_on: bool, width: int
) -> SourcesBackwardSpec:
    later = tuple(i for i, source in enumerate(sources) if goes_on or source in carried)
    return SourcesBackwardSpec(len(sources), reads, later, tiles_held(len(reads), width))


def _pieces(total: int, most: int) -> Iterator[list[tuple[int, int]]]:
    """Places and sizes of the pieces, all as large as the first one but the last, for every size of the first one."""
    for size in range(1, min(total, most) + 1):
        yield [(first, min(size, total - first)) for first in range(0, total, size)]
