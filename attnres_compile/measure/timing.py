"""Paired timing of two callables in one process.

The two run in turn (A B, B A, A B, ..), so that a change of clock or of load meets both.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from attnres_compile.progress import each, stage
from attnres_compile.report.comparison import Comparison, MeasureError, Samples, paired_ratio
from attnres_compile.report.records import device_name

DEFAULT_ROUNDS = 20
_MAX_CALLS_PER_SAMPLE = 10_000


def compare(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    *,
    rounds: int = DEFAULT_ROUNDS,
    warmup: int = 2,
    sample_seconds: float = 0.02,
    device: torch.device | str = "cpu",
    names: tuple[str, str] = ("plain", "attnres"),
) -> Comparison:
    """Time ``candidate`` against ``baseline``, the two in turn.

    Args:
        baseline: called without arguments.
        candidate: called as often as ``baseline``.
        rounds: samples of each.
        warmup: untimed calls of each before, at least one, which compiles.
        sample_seconds: a sample repeats the call until the faster of the two lasts this long.
        device: on CUDA a sample is the time between two events on the current stream, read after a synchronisation.
        names: of the two.

    Raises:
        MeasureError: ``rounds`` is below 1, or the names are equal.
    """
    if rounds < 1:
        raise MeasureError(f"rounds is {rounds}: pass at least 1")
    if names[0] == names[1]:
        raise MeasureError(f"both callables are named {names[0]!r}: pass two different names")
    device = torch.device(device)
    both = (baseline, candidate)
    for name, call in zip(names, both, strict=True):
        for number in range(max(1, warmup)):
            stage(f"warm-up of {name}, call {number + 1} of {max(1, warmup)}" if number else f"compiling {name}")
            call()
    sample = _cuda_sample if device.type == "cuda" else _cpu_sample
    calls = _calls_per_sample(both, sample, sample_seconds)
    taken: tuple[list[float], list[float]] = ([], [])
    with garbage_collection_paused():
        for number in each(range(rounds), "round", is_timed=True):
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                taken[index].append(sample(both[index], calls))
    return Comparison(
        Samples(names[0], tuple(taken[0])),
        Samples(names[1], tuple(taken[1])),
        paired_ratio(*taken),
        device_name(device),
        torch.get_num_threads(),
        calls,
    )


def _calls_per_sample(
    both: Sequence[Callable[[], object]], sample: Callable[[Callable[[], object], int], float], seconds: float
) -> int:
    fastest = min(sample(call, 1) for call in both)
    return max(1, min(_MAX_CALLS_PER_SAMPLE, math.ceil(seconds / max(fastest, 1e-9))))


def _cpu_sample(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _cuda_sample(call: Callable[[], object], calls: int) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / calls


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Collect garbage, then none while samples are taken."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
