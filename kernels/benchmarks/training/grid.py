"""What is trained, as data: sizes, rows of the tables, and a run of a row. A new row is a line of ROWS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SEEDS = (0, 1, 2)
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
"""Peak learning rates of a sweep."""


@dataclass(frozen=True)
class Size:
    """Of a Llama of bytes and of its training.

    layers, width, heads, inner: of the model, inner being that of the MLP; batch, length: of a step; steps: of a run at
    factor one; on: kind of device that it is meant for; at_all_rates: rows of the first tier are trained with every
    seed at every rate, and not at the best one alone.
    """

    name: str
    layers: int
    width: int
    heads: int
    inner: int
    batch: int
    length: int
    steps: int
    on: str = "cpu"
    at_all_rates: bool = False

    @property
    def tokens(self) -> int:
        """Of a run at factor one."""
        return self.batch * self.length * self.steps


SHAPE = ("layers", "width", "heads", "inner", "batch", "length")
"""Fields of a size that decide what comes out of a run; its steps are those of the run."""

SIZES = {
    size.name: size
    for size in (
        Size("8x48", layers=8, width=48, heads=3, inner=128, batch=4, length=128, steps=400, at_all_rates=True),
        Size("12x64", layers=12, width=64, heads=4, inner=176, batch=4, length=128, steps=400),
        Size("24x64", layers=24, width=64, heads=4, inner=176, batch=4, length=128, steps=400),
        Size("24x512", layers=24, width=512, heads=8, inner=1376, batch=32, length=512, steps=4000, on="cuda"),
    )
}
"""By name, layers x width."""


@dataclass(frozen=True)
class Row:
    """What stands in a row of the table.

    options: of the rewrite, None for the plain model; factor: steps of a run over those of its size; rate_of: the row
    whose sweep gives its learning rate, its own where it is None; tier: rows of a lower one come first at every size;
    is_recorded: magnitudes, gradients and depth weights of its second seed are kept.
    """

    name: str
    options: Mapping[str, Any] | None
    tier: int
    rate_of: str | None = None
    factor: float = 1.0
    is_recorded: bool = False


PLAIN, BLOCKS = "plain", "4 blocks"
ROWS = {
    row.name: row
    for row in (
        Row(PLAIN, None, tier=1, is_recorded=True),
        Row(BLOCKS, {"num_blocks": 4}, tier=1, is_recorded=True),
        Row("full", {"block_size": 1}, tier=1, rate_of=BLOCKS, is_recorded=True),
        Row("plain, 1.25 x the steps", None, tier=2, rate_of=PLAIN, factor=1.25),
        Row("8 blocks", {"num_blocks": 8}, tier=2, rate_of=BLOCKS),
        Row("2 blocks", {"num_blocks": 2}, tier=2, rate_of=BLOCKS),
        Row("4 blocks, sum", {"num_blocks": 4, "scale": "sum"}, tier=3, rate_of=BLOCKS),
    )
}


@dataclass(frozen=True)
class Recipe:
    """How every run is trained, on both sides alike."""

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    """Of matrices; vectors, pseudo-queries and key norms among them, have none."""
    clip: float = 1.0
    warm_up: float = 0.1
    """Share of the steps; the rate then falls to zero in a straight line."""
    validation_batches: int = 32
    deviation: float = 0.08
    """Of the matrices at the beginning. With the 0.02 of transformers, models this narrow stay long where they know
    which byte follows which, and how long differs from seed to seed by more than any row does."""


@dataclass(frozen=True)
class Run:
    """One model, trained once. pretrained: steps of the plain model that it goes on from, in the table of retrofits."""

    table: str
    size: Size
    row: str
    options: Mapping[str, Any] | None
    rate: float
    seed: int
    steps: int
    recipe: Recipe = field(default_factory=Recipe)
    pretrained: int = 0

    @property
    def key(self) -> str:
        """The name of the run: no two of a table have the same."""
        return f"{self.table}: {self.size.name}, {self.row}, rate {self.rate:g}, seed {self.seed}"

    def settings(self, text: str) -> dict[str, Any]:
        """All that decides what comes out, but for the code, as plain JSON data. text: digest of it."""
        size = {name: value for name, value in asdict(self.size).items() if name in SHAPE}
        recipe = {**asdict(self.recipe), "betas": list(self.recipe.betas)}
        options = None if self.options is None else dict(self.options)
        run = {"options": options, "rate": self.rate, "seed": self.seed, "steps": self.steps}
        return {**size, **run, **recipe, "pretrained": self.pretrained, "text": text}


def quality_run(size: Size, row: Row, rate: float, seed: int) -> Run:
    """A run of the first table.

    Args:
        size: of the model.
        row: of the table.
        rate: the peak of its learning rate.
        seed: of the weights and of the batches.
    """
    return Run("quality", size, row.name, row.options, rate, seed, round(size.steps * row.factor))
