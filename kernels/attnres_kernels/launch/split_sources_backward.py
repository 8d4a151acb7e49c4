"""How the backward of several reads into completed blocks is split into launches: so that it moves the fewest bytes.

Every launch reads the gradients of its reads; a launch of further reads reads the sources again, and the gradients that
the launch before it wrote, to add to them. Sums for the keys that registers do not hold cost a read of the sources.

Sources do not know of one another, so that each piece of them has a split of the reads of its own. Pieces of sources
are as few as can be, since each reads the gradients of all reads; how many reads to a launch is compared by traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from attnres_kernels.generation.specs import (
    MOST_READS,
    MOST_SOURCES,
    MOST_TILES_OF_KEYS,
    SourcesBackwardSpec,
    launches_of,
)
from attnres_kernels.generation.traffic import traffic_of
from attnres_kernels.launch import tiling


@dataclass(frozen=True)
class Launch:
    """One launch of the backward of the sources.

    first_source: its first one of all sources; first_read: of the reads that have a gradient.
    """

    first_source: int
    first_read: int
    spec: SourcesBackwardSpec


def tiles_held(reads: int, width: int) -> int:
    """Tiles of a row for which one launch holds sums for the keys in registers: all of them, or none.

    Args:
        reads: of the launch.
        width: of the stream.
    """
    tiles = -(-width // tiling.steps(width).columns)
    return tiles if reads * tiles <= MOST_TILES_OF_KEYS else 0


@cache
def split_into_launches(
    sources: int, reads: tuple[int, ...], carried: tuple[int, ...], width: int
) -> tuple[Launch, ...]:
    """The launches, in order, with the fewest bytes; of equals, the fewest kernels.

    Args:
        sources: completed blocks.
        reads: those that have a gradient.
        carried: the sources that come with a gradient from later reads.
        width: of the stream.
    """
    return tuple(
        Launch(first, launch.first_read, launch.spec)
        for first, count in (_pieces_of_sources(sources) if reads else ())
        for launch in _split_reads(count, reads, tuple(i - first for i in carried if 0 <= i - first < count), width)
    )


@cache
def traffic_of_launches(sources: int, reads: int, width: int, carried: bool = True) -> int:
    """What all launches move per token, in units of the width.

    Args:
        sources, reads: completed blocks, and reads that have a gradient.
        width: of the stream.
        carried: whether later reads gave gradients.
    """
    return sum(_traffic_of_piece(count, reads, width, carried) for _, count in _pieces_of_sources(sources))


@cache
def _traffic_of_piece(sources: int, reads: int, width: int, carried: bool) -> int:
    launches = _split_reads(sources, tuple(range(reads)), tuple(range(sources)) if carried else (), width)
    return sum(traffic_of(launch.spec).total for launch in launches)


def _pieces_of_sources(sources: int) -> list[tuple[int, int]]:
    """The fewest pieces, about equally large."""
    return _pieces(sources, -(-sources // -(-sources // MOST_SOURCES))) if sources else []


@cache
def _split_reads(sources: int, reads: tuple[int, ...], carried: tuple[int, ...], width: int) -> tuple[Launch, ...]:
    """The launches for one piece of the sources; every one of these is carried on from the first launch."""

    def cost(launches: tuple[Launch, ...]) -> tuple[int, int]:
        return sum(traffic_of(x.spec).total for x in launches), sum(launches_of(x.spec) for x in launches)

    def launches(size: int) -> Iterator[Launch]:
        for first, count in _pieces(len(reads), size):
            later = carried if first == 0 else tuple(range(sources))
            yield Launch(
                0, first, SourcesBackwardSpec(sources, reads[first : first + count], later, tiles_held(count, width))
            )

    return min((tuple(launches(size)) for size in range(1, min(len(reads), MOST_READS) + 1)), key=cost, default=())


def _pieces(total: int, size: int) -> list[tuple[int, int]]:
    """Places and sizes of the pieces, all of ``size`` but the last."""
    return [(first, min(size, total - first)) for first in range(0, total, size)]
