"""Timing of many arms in turn, on a GPU by events, with the time of launching left out.

On CUDA every sample is one call. Before it the GPU overwrites a buffer much larger than its last-level cache, often
enough that the host has queued the whole call before the GPU comes to it. So no sample finds its inputs in the cache
(in a model the sublayers' weights and activations have passed through it between two reads; a rotating set of inputs
would need several times the memory of the largest shapes), and none counts the host's time for launches, which a model
hides behind its other work. A sample for which the queue ran dry all the same is counted as late.

On the CPU a sample is the time of one call: there to run the same code, not to be quoted.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnres_compile.measure.timing import garbage_collection_paused
from attnres_compile.progress import each, stage

WARMUP_CALLS = 3
LARGEST_COPY = 1 << 30
"""Bytes of the tensor that is copied; larger ones are copied no faster."""

_SMALLEST_FLUSH = 512 << 20
_MOST_LEAD_SECONDS = 0.1


@dataclass(frozen=True)
class Timed:
    """What is timed."""

    forward: Callable[[], list[Tensor]]
    backward: Callable[[list[Tensor]], object] | None = None
    """From the outputs of ``forward``."""


@dataclass
class Taken:
    """What was taken of one call."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each part, one number per round."""
    lead: int = 0
    """How often the buffer is overwritten before a sample."""
    late: int = 0
    """Samples that began before all of them was queued."""
    error: str = ""
    """What ended it, in one line."""

    def add(self, *marks: float) -> None:
        """marks: seconds of the forward and, with a backward, of that."""
        parts = {"forward": marks[0]}
        if len(marks) > 1:
            parts |= {"backward": marks[1], "step": marks[0] + marks[1]}
        for name, value in parts.items():
            self.seconds.setdefault(name, []).append(value)


class CpuClock:
    """Takes the time of the host."""

    def lead(self, call: Timed) -> int:
        """Nothing is overwritten before a sample."""
        return 0

    def sample(self, call: Timed, taken: Taken) -> None:
        """Add one sample.

        Args:
            call: what is timed.
            taken: what was taken of it before.
        """
        marks = [time.perf_counter()]
        made = call.forward()
        marks.append(time.perf_counter())
        if call.backward is not None:
            call.backward(made)
            marks.append(time.perf_counter())
        taken.add(*(after - before for before, after in itertools.pairwise(marks)))


class CudaClock:
    """Takes the time between events on the stream."""

    def __init__(self, device: torch.device) -> None:
        if device.index is not None:
            torch.cuda.set_device(device)
        cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
        self.buffer = torch.empty(max(4 * cache, _SMALLEST_FLUSH), dtype=torch.uint8, device=device)
        times = 10
        start, end = self._events(2)
        self.buffer.zero_()
        start.record()
        for _ in range(times):
            self.buffer.zero_()
        end.record()
        torch.cuda.synchronize()
        self.flush_seconds: float = max(start.elapsed_time(end) / 1000 / times, 1e-6)

    def lead(self, call: Timed) -> int:
        """How often to overwrite the buffer before a sample: for twice as long as the host takes to queue a call."""
        queued = []
        for _ in range(WARMUP_CALLS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            self._run(call, self._events(3))
            queued.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        seconds = min(2 * statistics.median(queued), _MOST_LEAD_SECONDS)
        return 1 + math.ceil(seconds / self.flush_seconds)

    def sample(self, call: Timed, taken: Taken) -> None:
        """Add one sample, behind a buffer that is overwritten.

        Args:
            call: what is timed.
            taken: what was taken of it before.
        """
        events = self._events(3)
        torch.cuda.synchronize()
        for _ in range(taken.lead):
            self.buffer.zero_()
        used = self._run(call, events)
        taken.late += bool(events[0].query())  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        taken.add(*(events[i].elapsed_time(events[i + 1]) / 1000 for i in range(used)))

    @staticmethod
    def _events(count: int) -> list[torch.cuda.Event]:
        return [torch.cuda.Event(enable_timing=True) for _ in range(count)]  # type: ignore[no-untyped-call]

    @staticmethod
    def _run(call: Timed, events: Sequence[torch.cuda.Event]) -> int:
        events[0].record()
        made = call.forward()
        events[1].record()
        if call.backward is None:
            return 1
        call.backward(made)
        events[2].record()
        return 2


def make_clock(device: torch.device) -> CpuClock | CudaClock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def time_in_turn(calls: dict[str, Timed], rounds: int, clock: CpuClock | CudaClock) -> dict[str, Taken]:
    """Samples of each call, all in turn, forwards and backwards: A B C, C B A, A B C, ..

    A call that raises is taken no further; its error is kept.

    Args:
        calls: by name.
        rounds: samples of each.
        clock: of the device.
    """
    taken = {name: Taken() for name in calls}
    for name, call in calls.items():
        stage(f"warm-up of {name}")
        _attempt(taken[name], call, lambda call, taken: _warm_up(call, taken, clock))
    with garbage_collection_paused():
        for number in each(range(rounds), "round", is_timed=True):
            for name in list(calls) if number % 2 == 0 else reversed(calls):
                if not taken[name].error:
                    _attempt(taken[name], calls[name], clock.sample)
    return taken


def _warm_up(call: Timed, taken: Taken, clock: CpuClock | CudaClock) -> None:
    for _ in range(WARMUP_CALLS if isinstance(clock, CudaClock) else 1):
        made = call.forward()
        if call.backward is not None:
            call.backward(made)
        del made
    taken.lead = clock.lead(call)


def _attempt(taken: Taken, call: Timed, run: Callable[[Timed, Taken], None]) -> None:
    try:
        run(call, taken)
    except Exception as error:  # its traceback would keep the tensors of the call
        taken.error = first_line(error)
    if taken.error and torch.cuda.is_available():
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """The kind and the first line of an error, that of the error within if a compiler wrapped it; no folders."""
    while (inner := getattr(error, "inner_exception", None)) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", text)[:300]


def copy_call(nbytes: int, device: torch.device) -> tuple[Timed, int]:
    """A copy of a tensor, and the bytes that it moves: reads and writes.

    Args:
        nbytes: of the tensor, which has LARGEST_COPY at most.
        device: that it is on.
    """
    size = min(nbytes, LARGEST_COPY)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Timed(lambda: [target.copy_(source)]), 2 * size
