"""Seconds of two callables, and an interval for their ratio: what a measured row of a report holds.

Each round gives one paired ratio, and the interval of the median ratio comes from the order statistics of the rounds:
no distribution is assumed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnres_kernels.errors import AttnResError

CONFIDENCE = 0.95


class MeasureError(AttnResError):
    """A measurement was asked for that cannot be made, or a record of one that cannot be read."""


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

    Few rounds cannot give CONFIDENCE: the interval is then the whole range, and ``confidence`` says what it gives.
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

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON, the value under the name ``median``."""
        return {"median": self.value, "low": self.low, "high": self.high, "confidence": self.confidence}


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
            "samples": {side.name: list(side.seconds) for side in (self.baseline, self.candidate)},
            "ratio": self.ratio.to_dict(),
            "device": self.device,
            "threads": self.threads,
            "calls_per_sample": self.calls,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Comparison:
        """The comparison that ``to_dict`` wrote. Raises KeyError or ValueError for other data."""
        baseline, candidate = (Samples(name, tuple(seconds)) for name, seconds in data["samples"].items())
        ratio = Ratio(*(data["ratio"][name] for name in ("median", "low", "high", "confidence")))
        return Comparison(baseline, candidate, ratio, data["device"], data["threads"], data["calls_per_sample"])


def paired_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> Ratio:
    """Median of ``candidate[i] / baseline[i]``, with its order-statistic interval.

    Args:
        baseline: seconds, one number per round.
        candidate: seconds of the same rounds.

    Raises:
        MeasureError: the samples cannot be paired.
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

    The median lies outside of it with twice the chance that a fair coin falls on heads at most ``rank`` times in
    ``count`` throws. ``confidence`` is at least CONFIDENCE, except for counts below 6, where rank is 0.
    """
    rank, outside = 0, 0.5**count
    while rank + 1 < (count + 1) // 2:
        wider = outside + math.comb(count, rank + 1) * 0.5**count
        if 1 - 2 * wider < CONFIDENCE:
            break
        rank, outside = rank + 1, wider
    return rank, max(0.0, 1 - 2 * outside)


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of ``values``, linear between the two nearest.

    Args:
        values: in any order, at least one.
        share: of the values that lie below, from 0 to 1.
    """
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
