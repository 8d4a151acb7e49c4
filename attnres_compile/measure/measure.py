"""Paired timing of two callables in one process, with an interval for their ratio.

The two run in turn (A B, B A, A B, ..), so that a change of clock or of load meets both; each round gives
one paired ratio, and the interval of the median ratio comes from the order statistics of the rounds: no
distribution is assumed.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from attnres_compile.measure.environment import device_name
from attnres_kernels.errors import AttnResError

CONFIDENCE = 0.95
DEFAULT_ROUNDS = 20
_MAX_CALLS_PER_SAMPLE = 10_000


class MeasureError(AttnResError):
    """A measurement was asked for that cannot be made."""


@dataclass(frozen=True)
class Samples:
    """Seconds per call of one callable, one number per round, in the order they were taken."""

    name: str
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise MeasureError(f"{self.name} has no samples: take at least 1 round")

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        return quantile(self.seconds, 0.2)

    @property
    def p80(self) -> float:
        return quantile(self.seconds, 0.8)


@dataclass(frozen=True)
class Ratio:
    """Median of the paired ratios candidate / baseline, and an interval that holds it with ``confidence``.

    Few rounds cannot give CONFIDENCE: then the interval is the whole range and ``confidence`` says what it
    gives.
    """

    value: float
    low: float
    high: float
    confidence: float

    @property
    def resolved(self) -> bool:
        """Whether the two differ: the interval leaves 1 out, with the full confidence."""
        return self.confidence >= CONFIDENCE and not self.low <= 1.0 <= self.high

    def __str__(self) -> str:
        mark = "" if self.resolved else "≈ "
        return f"{mark}{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """Two callables timed in turn; ``calls`` of them make one sample, ``threads`` is torch's on the CPU."""

    baseline: Samples
    candidate: Samples
    ratio: Ratio
    device: str
    threads: int
    calls: int

    def to_dict(self) -> dict[str, Any]:
        """Raw samples in seconds and the ratio, as plain data for JSON."""
        return {
            "unit": "s",
            "samples": {arm.name: list(arm.seconds) for arm in (self.baseline, self.candidate)},
            "ratio": {
                "median": self.ratio.value,
                "low": self.ratio.low,
                "high": self.ratio.high,
                "confidence": self.ratio.confidence,
            },
            "device": self.device,
            "threads": self.threads,
            "calls_per_sample": self.calls,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Comparison:
        """The comparison that ``to_dict`` wrote. Raises KeyError or ValueError for other data."""
        baseline, candidate = (Samples(name, tuple(seconds)) for name, seconds in data["samples"].items())
        ratio = data["ratio"]
        return Comparison(
            baseline,
            candidate,
            Ratio(ratio["median"], ratio["low"], ratio["high"], ratio["confidence"]),
            data["device"],
            data["threads"],
            data["calls_per_sample"],
        )


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
    """Time ``candidate`` against ``baseline``, ``rounds`` samples each, taken in turn.

    warmup: untimed calls of each before (at least one, which compiles). sample_seconds: a sample repeats
    the call until the faster of the two lasts this long; both repeat it equally often. On CUDA a sample is
    the time between two events on the current stream, read after the device is synchronised.

    Raises MeasureError if ``rounds`` is below 1 or the names are equal.
    """
    if rounds < 1:
        raise MeasureError(f"rounds is {rounds}: pass at least 1")
    if names[0] == names[1]:
        raise MeasureError(f"both callables are named {names[0]!r}: pass two different names")
    device = torch.device(device)
    arms = (baseline, candidate)
    for arm in arms:
        for _ in range(max(1, warmup)):
            arm()
    sample = _cuda_sample if device.type == "cuda" else _cpu_sample
    calls = _calls_per_sample(arms, sample, sample_seconds)
    taken: tuple[list[float], list[float]] = ([], [])
    with garbage_collection_paused():
        for number in range(rounds):
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                taken[index].append(sample(arms[index], calls))
    return Comparison(
        Samples(names[0], tuple(taken[0])),
        Samples(names[1], tuple(taken[1])),
        paired_ratio(*taken),
        device_name(device),
        torch.get_num_threads(),
        calls,
    )


def paired_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> Ratio:
    """Median of ``candidate[i] / baseline[i]``, with its order-statistic interval.

    Raises MeasureError if the samples cannot be paired.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise MeasureError(
            f"{len(baseline)} and {len(candidate)} samples cannot be paired: take as many of each, at least 1"
        )
    ratios = sorted(after / before for before, after in zip(baseline, candidate, strict=True))
    rank, confidence = median_interval_rank(len(ratios))
    return Ratio(statistics.median(ratios), ratios[rank], ratios[-1 - rank], confidence)


def median_interval_rank(count: int) -> tuple[int, float]:
    """``(rank, confidence)`` of the narrowest interval ``[sorted[rank], sorted[-1 - rank]]`` of the median.

    The median lies outside of it with twice the chance that a fair coin falls on heads at most ``rank``
    times in ``count`` throws. ``confidence`` is at least CONFIDENCE, except for counts below 6, where rank
    is 0.
    """
    rank, outside = 0, 0.5**count
    while rank + 1 < (count + 1) // 2:
        wider = outside + math.comb(count, rank + 1) * 0.5**count
        if 1 - 2 * wider < CONFIDENCE:
            break
        rank, outside = rank + 1, wider
    return rank, max(0.0, 1 - 2 * outside)


def quantile(values: Sequence[float], share: float) -> float:
    """The ``share`` quantile of ``values``, linear between the two nearest."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _calls_per_sample(
    arms: Sequence[Callable[[], object]], sample: Callable[[Callable[[], object], int], float], seconds: float
) -> int:
    fastest = min(sample(arm, 1) for arm in arms)
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
