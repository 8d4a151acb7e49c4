"""How many kernels one call of an operator of ours launches, from its arguments.

What the launching files do, in numbers: phase 1 and the sources' backward cut work that registers cannot hold at once,
and a read with more blocks than it takes in place sums them up by a phase 1 of its own first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attnres_kernels.generation.specs import MOST_SOURCES
from attnres_kernels.launch import tiling
from attnres_kernels.launch.cutting import cut


def of_phase_1(sources: int) -> int:
    """``launch_phase_1.phase_1``: so many sources in each launch."""
    return -(-sources // MOST_SOURCES)


def of_read(sources: int, width: int) -> int:
    """``launch_read.read`` and ``read_backward`` over ``sources`` blocks in place."""
    return 1 + (of_phase_1(sources) if sources > tiling.most_in_place(width) else 0)


def of_sources_backward(sources: int, reads: int, width: int) -> int:
    """``launch_sources_backward.sources_backward``; ``reads`` are those whose values have a gradient."""
    return sum(launch.kernels for launch in cut(sources, tuple(range(reads)), (), width))


def _of_read_call(args: Sequence[Any]) -> int:
    sources = args[2]
    return of_read(len(sources), sources[0].shape[-1]) if sources else 1


def _of_read_backward_call(args: Sequence[Any]) -> int:
    return _of_read_call(args[4:])


def _of_sources_backward_call(args: Sequence[Any]) -> int:
    sources = args[3]
    return of_sources_backward(len(sources), sum(grad is not None for grad in args[0]), sources[0].shape[-1])


LAUNCHES: dict[str, Callable[[Sequence[Any]], int]] = {
    "attnres.generated_logits": lambda args: 1,
    "attnres.generated_block": lambda args: 1,
    "attnres.generated_phase_1": lambda args: of_phase_1(len(args[0])),
    "attnres.generated_read": _of_read_call,
    "attnres.generated_read_backward": _of_read_backward_call,
    "attnres.generated_sources_backward": _of_sources_backward_call,
    "attnres.generated_own_read": lambda args: 1,
    "attnres.generated_own_read_backward": lambda args: 1,
}
"""By operator, from the positional arguments of a call."""
