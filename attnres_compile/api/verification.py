"""What ``verify`` gives: checks, and how far apart two values may be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from attnres_passes.ir.plan import short_source

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    # The plain model rounds its running sum once per write and the blocks are rounded on their own.
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}
"""Largest difference relative to the largest element, by the least precise dtype that the model computes in."""


@dataclass(frozen=True)
class Check:
    """One comparison. error: largest difference relative to the largest element, over all outputs and reads.

    wrong_read: the first read, in graph order, whose value is off by more than ``tolerance``, '' if none is; or why
    there is no value to compare. refused: the rewritten model stopped with an error of ours that says what to do.
    """

    name: str
    dtype: str
    passed: bool
    error: float
    tolerance: float
    wrong_read: str = ""
    skipped: str = ""
    refused: bool = False


MOST_NAMED = 8
"""Reads of which a verification says by how much they deviate."""
WORTH_SAYING = 1e-2
"""Deviation of a read from which on it is named in the text of a verification."""


@dataclass(frozen=True)
class Deviation:
    """How far a norm is off, relative to its largest element, where it is given the mean of the sources for their sum.

    That is where a fresh rewrite under ``scale="mean"`` begins. module, source: of the read; eps: the largest constant
    in the norm, which is the cause; empty if there is none.
    """

    module: str
    source: str
    num_sources: int
    deviation: float
    eps: tuple[float, ...]

    def __str__(self) -> str:
        cause = f", eps {self.eps[0]:g}" if self.eps else ""
        where = self.module or "the model"
        return f"{self.deviation:.1%} in {where} ({short_source(self.source)}): {self.num_sources} sources{cause}"


@dataclass(frozen=True)
class Verification:
    """All checks of a model; ``str()`` is a table.

    deviations: of each normed read of a model in one graph that is rewritten under ``scale="mean"``. They are reported,
    and no check fails for them.
    """

    checks: tuple[Check, ...]
    deviations: tuple[Deviation, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check that could be made was made and passed, and at least one was."""
        made = [check for check in self.checks if not check.skipped]
        return bool(made) and all(check.passed for check in made)

    @property
    def max_error(self) -> float:
        """The largest relative error of the checks that were made; nan without any."""
        return max((check.error for check in self.checks if not check.skipped), default=float("nan"))

    def to_dict(self) -> dict[str, Any]:
        checks = [dataclasses.asdict(check) for check in self.checks]
        deviations = [dataclasses.asdict(deviation) for deviation in self.deviations]
        return {"passed": self.passed, "max_error": self.max_error, "checks": checks, "deviations": deviations}

    def __str__(self) -> str:
        rows = [
            [
                check.name,
                check.dtype,
                "skipped" if check.skipped else "passed" if check.passed else "FAILED",
                "" if check.skipped else f"{check.error:.1e}",
                "" if check.skipped else f"{check.tolerance:.0e}",
                check.skipped or check.wrong_read,
            ]
            for check in self.checks
        ]
        table = tabulate(
            rows, headers=["check", "dtype", "result", "rel. error", "tolerance", "note"], disable_numparse=True
        )
        end = f"{'verified' if self.passed else 'NOT verified'}, largest relative error {self.max_error:.1e}"
        return "\n".join([table, end, *self._felt()])

    def _felt(self) -> list[str]:
        """The normed reads that feel whether they are given a mean or a sum, the first few."""
        felt = [one for one in self.deviations if not one.deviation <= WORTH_SAYING]
        if not felt:
            return []
        head = (
            f'{len(felt)} of {len(self.deviations)} normed reads feel scale="mean": their norms give something else of '
            "the mean of their sources than of the sum, since an eps is large beside it. The rewrite is right, and "
            'begins that far from the plain model; scale="sum" does not.'
        )
        rest = [f"  and {len(felt) - MOST_NAMED} more"] if len(felt) > MOST_NAMED else []
        return [head, *(f"  {one}" for one in felt[:MOST_NAMED]), *rest]


def relative_error(expected: Tensor, found: Tensor, at_least: float = 0.0) -> float:
    """Largest difference relative to the largest element; infinite if one is nan and the other is not.

    Args:
        expected, found: tensors of one shape.
        at_least: what the difference is relative to where all elements are smaller.
    """
    left, right = expected.double().flatten(), found.double().flatten()
    if left.numel() == 0:
        return 0.0
    same = (left == right) | (left.isnan() & right.isnan())
    difference = torch.where(same, torch.zeros_like(left), (left - right).abs())
    largest = (
        left.nan_to_num(posinf=0.0, neginf=0.0).abs().max().clamp_min(max(at_least, torch.finfo(torch.float32).tiny))
    )
    return float((difference.max() / largest).nan_to_num(nan=float("inf")))


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
