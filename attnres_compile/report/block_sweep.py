"""The trade-off over the number of blocks: what AttnRes costs a model from one block to Full AttnRes."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import nn

from attnres_compile.api.prepare import config_from
from attnres_compile.capture.analysis import plan_of
from attnres_compile.model.errors import NoStreamError
from attnres_compile.progress import each
from attnres_compile.report.counting.model_counts import Lengths, ModelCounts, model_graphs, total
from attnres_compile.report.quantities import quantity
from attnres_compile.report.rows.memory import sources_alive
from attnres_passes.analyses.blocks import block_size_for, num_blocks_for
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.read_parameters import elements_of_read

SCHEMA_VERSION = 1
HEADERS = ("blocks", "writes a block", "sources", "parameters", "forward FLOPs", "residual I/O", "x plain", "stored")
NOTE = (
    "parameters and FLOPs: added; residual I/O: bytes per token and sublayer, counted from the scheduled graph; "
    "stored: bytes per token of the root, the completed blocks and the open partial sum at the deepest read; "
    "*: as configured"
)


@dataclass(frozen=True)
class SweepPoint:
    """One partition into blocks, that of the longest stream where a model has several."""

    num_blocks: int
    block_size: int
    sources: int
    """At the deepest read."""
    parameters: int
    """Added to the plain model."""
    forward_flops: float | None
    """Added to the plain model; None where it cannot be executed without data."""
    io_bytes: float
    """Per token and sublayer."""
    plain_io_bytes: float
    stored_bytes: int
    """Per token."""
    is_chosen: bool

    def cells(self) -> tuple[str, ...]:
        """Text of the columns HEADERS."""
        return (
            f"{self.num_blocks}{'*' if self.is_chosen else ''}",
            str(self.block_size),
            str(self.sources),
            f"+{self.parameters:,}",
            quantity(self.forward_flops, "FLOP", "+"),
            quantity(self.io_bytes, "B"),
            f"{self.io_bytes / self.plain_io_bytes:.2f}",
            quantity(self.stored_bytes, "B"),
        )


@dataclass(frozen=True)
class BlockSweep:
    """The points of one model, by rising number of blocks; ``str()`` is the table."""

    model: str
    points: tuple[SweepPoint, ...]

    def __str__(self) -> str:
        return f"{self.model}\n\n{self._table('simple')}\n{NOTE}"

    def to_markdown(self) -> str:
        """The table and its note as GitHub markdown."""
        return f"{self._table('github')}\n\n{NOTE.replace('*', '&ast;')}"

    def to_csv(self) -> str:
        """One line per point, numbers in full; a missing number is "n/a"."""
        text = io.StringIO()
        names = [field.name for field in dataclasses.fields(SweepPoint)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for point in self.points:
            values = (getattr(point, name) for name in names)
            writer.writerow("n/a" if value is None else value for value in values)
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        points = [dataclasses.asdict(point) for point in self.points]
        return {"schema_version": SCHEMA_VERSION, "kind": "overhead sweep", "model": self.model, "points": points}

    def _table(self, style: str) -> str:
        body = [point.cells() for point in self.points]
        return tabulate(body, HEADERS, tablefmt=style, disable_numparse=True, colalign=("right",) * len(HEADERS))


def sweep_blocks(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    lengths: tuple[int, int] | None = None,
    config: AttnResConfig | None = None,
    **options: Any,
) -> BlockSweep:
    """Count ``model`` at 1, 2, 4, .. blocks, at a block for each write, and as configured; it is captured once.

    Args:
        model: plain, with data or on the meta device.
        args: of its call.
        kwargs: of its call.
        name: of the model in the table, else its class.
        lengths: tokens per row that the call has, and those that the numbers are scaled to.
        config: of the rewrite.
        options: fields of the config in its place.

    Raises:
        AttnResError: the model cannot be rewritten.
    """
    chosen = config_from(config, options)
    graphs = model_graphs(model, tuple(args), dict(kwargs or {}), chosen)
    plan = plan_of(graphs.graphs, chosen)
    if not plan.streams:
        raise NoStreamError(plan.declined)
    longest = max(plan.streams, key=lambda stream: len(stream.writes))
    writes, own = len(longest.writes), longest.block_size
    points = []
    for size in each(sorted({*_sizes(writes), own}, reverse=True), "partition"):
        blocks = num_blocks_for(writes, size)
        # The number of blocks, so that streams of other lengths are cut alike; or the size, where it is configured.
        partition = (None, size) if size == own and chosen.block_size is not None else (blocks, None)
        changed = dataclasses.replace(chosen, num_blocks=partition[0], block_size=partition[1])
        counts = graphs.under(changed).count(Lengths(*(lengths or (1, 1))), with_model=False)
        points.append(_point(counts, size == own))
    return BlockSweep(name or type(model).__name__, tuple(points))


def _sizes(writes: int) -> Iterator[int]:
    """Block sizes for 1, 2, 4, .. blocks, and for one write each: what the number of blocks comes to, once each."""
    blocks = 1
    while blocks < writes:
        yield block_size_for(writes, AttnResConfig(num_blocks=blocks))
        blocks *= 2
    yield 1


def _point(counts: ModelCounts, is_chosen: bool) -> SweepPoint:
    streams, alive, how = counts.plan.streams, sources_alive(counts), counts.plan.config.mechanism
    longest = max(streams, key=lambda stream: len(stream.writes))
    added = None if counts.residual_path is None else counts.lengths.flops(total(counts.residual_path, "forward"))
    return SweepPoint(
        num_blocks=longest.num_blocks,
        block_size=longest.block_size,
        sources=max(alive),
        parameters=sum(elements_of_read(how, stream.width) * len(stream.parametrized_reads) for stream in streams),
        forward_flops=added,
        io_bytes=counts.bytes_per_write(counts.traffic[counts.plan.config.schedule]),
        plain_io_bytes=counts.bytes_per_write(counts.plain_traffic),
        stored_bytes=sum(number * shape.row_bytes for number, shape in zip(alive, counts.shapes, strict=True)),
        is_chosen=is_chosen,
    )
