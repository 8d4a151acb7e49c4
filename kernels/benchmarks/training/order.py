"""Which run comes next: what is missing, in order of worth, so that an interrupted command leaves whole rows behind.

Within a tier, size by size, and within a size row by row: a sweep of the rates with the first seed, then the other
seeds at the best of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from .grid import BLOCKS, PLAIN, RATES, ROWS, SEEDS, Row, Run, Size, quality_run
from .record import Line

Known = Callable[[Run], Line | None]

RETROFITS: dict[str, tuple[str, ...] | None] = {
    "plain goes on": None,
    "sum, then mean": ("sum", "mean"),
    "mean at once": ("mean",),
}
"""Rows of the table of retrofits: the scale of each half, or of all of it; None for the plain model."""

RETROFIT_RATE = 0.5
"""Of the rate that was best for the plain model: the peak of what follows its end."""


def loss_of(line: Line | None) -> float:
    """The validation loss of a run; infinite where it diverged, not a number where there is none."""
    if line is None:
        return math.nan
    found = line["validation"]
    return math.inf if found is None else float(found)


def sweep(size: Size, row: Row) -> list[Run]:
    """The runs that choose the rate of a row.

    Args:
        size: of the model.
        row: with a sweep of its own, or one that takes its rate from another.
    """
    return [quality_run(size, ROWS[row.rate_of or row.name], rate, SEEDS[0]) for rate in RATES]


def best_rate(size: Size, row: Row, known: Known) -> float | None:
    """The rate of a row, None as long as its sweep is not complete.

    Args:
        size: of the model.
        row: of the table.
        known: what is known of a run.
    """
    found = {run.rate: loss_of(known(run)) for run in sweep(size, row)}
    return None if any(map(math.isnan, found.values())) else min(found, key=lambda rate: found[rate])


def final_runs(size: Size, row: Row, known: Known) -> list[Run]:
    """The runs of a cell of the table: all seeds at the best rate; none as long as that is not known.

    Args:
        size: of the model.
        row: of the table.
        known: what is known of a run.
    """
    rate = best_rate(size, row, known)
    return [] if rate is None else [quality_run(size, row, rate, seed) for seed in SEEDS]


def runs_at_all_rates(size: Size, row: Row) -> list[Run]:
    """The runs of a row with every seed at every rate; none where only the best rate is asked for.

    Args:
        size: of the model.
        row: of the table.
    """
    if not size.at_all_rates or row.tier > 1:
        return []
    return [quality_run(size, row, rate, seed) for rate in RATES for seed in SEEDS]


def quality_runs(sizes: Sequence[Size], rows: Sequence[Row], known: Known) -> Iterator[Run]:
    """All runs of the first table that can be named by now, in order.

    Args:
        sizes: smallest first.
        rows: in their order; those of a lower tier come first.
        known: what is known of a run.
    """
    named: set[str] = set()
    for tier in sorted({row.tier for row in rows}):
        for size in sizes:
            chosen = [row for row in rows if row.tier == tier]
            of_size = [run for row in chosen for run in (*sweep(size, row), *final_runs(size, row, known))]
            for run in (*of_size, *(run for row in chosen for run in runs_at_all_rates(size, row))):
                if run.key not in named:
                    named.add(run.key)
                    yield run


def retrofit_runs(sizes: Sequence[Size], known: Known) -> Iterator[Run]:
    """All runs of the second table whose plain model has a rate by now, in order.

    Args:
        sizes: smallest first.
        known: what is known of a run, of both tables.
    """
    for size in sizes:
        rate = best_rate(size, ROWS[PLAIN], known)
        if rate is None:
            continue
        for row, scales in RETROFITS.items():
            options = None if scales is None else {**(ROWS[BLOCKS].options or {}), "scales": list(scales)}
            for seed in SEEDS:
                yield Run(
                    "retrofit", size, row, options, RETROFIT_RATE * rate, seed, size.steps // 2, pretrained=size.steps
                )


def pretraining(run: Run, known: Known) -> Run:
    """The run of the first table that a retrofit goes on from.

    Args:
        run: of the second table.
        known: what is known of a run.
    """
    rate = best_rate(run.size, ROWS[PLAIN], known)
    assert rate is not None
    return quality_run(run.size, ROWS[PLAIN], rate, run.seed)
