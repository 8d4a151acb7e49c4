"""How the backward of several reads into completed blocks is cut into launches that registers can hold.

No source needs another one's numbers, so that sources and reads are cut freely. A launch of further reads finds
gradients of its sources, which the launches before it wrote, and adds to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from attnres_kernels.depth_attention.generated.moved import of_sources_backward
from attnres_kernels.depth_attention.generated.specs import MOST_READS, SourcesBackwardSpec, sources_at_once


@dataclass(frozen=True)
class Launch:
    """first_source, first_read: of its sources and reads among all of them."""

    first_source: int
    first_read: int
    spec: SourcesBackwardSpec

    @property
    def kernels(self) -> int:
        return 2 if self.spec.sums_keys else 3


def cut(sources: int, reads: tuple[int, ...], carried: Collection[int]) -> Iterator[Launch]:
    """The launches, in order.

    Args:
        sources: completed blocks.
        reads: those that have a gradient.
        carried: the sources that come with a gradient from later reads.
    """
    for first_read in range(0, len(reads), MOST_READS):
        part = reads[first_read : first_read + MOST_READS]
        step = sources_at_once(len(part))
        for first in range(0, sources, step):
            numbers = range(first, min(first + step, sources))
            later = tuple(i for i, source in enumerate(numbers) if first_read > 0 or source in carried)
            yield Launch(first, first_read, SourcesBackwardSpec(len(numbers), part, later))


def moved_by_launches(sources: int, reads: int, carried: bool = True) -> int:
    """What all launches move per token, in units of the width. carried: whether later reads gave gradients."""
    launches = cut(sources, tuple(range(reads)), range(sources) if carried else ())
    return sum(of_sources_backward(launch.spec).total for launch in launches)
