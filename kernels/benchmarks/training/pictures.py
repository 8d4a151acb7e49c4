"""Pictures of the dynamics: the plain model against AttnRes over depth, and the weights of the reads."""

from __future__ import annotations

from typing import Any

from attnres_compile import DepthWeights
from attnres_compile.measure.figures import figure_bytes, new_figure

from .grid import ROWS, SEEDS, SIZES, Size
from .order import final_runs
from .record import Record

_COLOURS = ("0.35", "tab:red", "tab:blue", "tab:green")


def recordings(record: Record, size: Size) -> dict[str, DepthWeights]:
    """What was recorded of each row of a size.

    Args:
        record: of the runs.
        size: of the models.
    """
    found = {}
    for row in ROWS.values():
        for run in final_runs(size, row, record.of):
            line = record.of(run)
            if line is not None and run.seed == SEEDS[1] and "dynamics" in line:
                found[row.name] = DepthWeights.from_dict(line["dynamics"])
    return found


def dynamics_svg(record: Record) -> dict[str, str]:
    """A picture for each size of which the plain model and another were recorded, by the name of its file."""
    drawn = {}
    for size in SIZES.values():
        found = recordings(record, size)
        if len(found) > 1:
            drawn[f"dynamics-{size.name}"] = figure_bytes(dynamics_figure(size, found), "svg").decode()
    return drawn


def dynamics_figure(size: Size, found: dict[str, DepthWeights]) -> Any:
    """Magnitudes and gradient norms of all rows; below, the weights of the reads of those with several sources.

    Args:
        size: of the models.
        found: recordings by row, the plain model first.
    """
    maps = [name for name in found if ROWS[name].options is not None]
    figure = new_figure(10.5, 3.2 + 4.2)
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.2, 4.2])
    figure.suptitle(f"{size.layers} layers of width {size.width}, at the end of training", fontsize=10)
    axes = upper.subplots(1, 3)
    for (name, weights), colour in zip(found.items(), _COLOURS, strict=False):
        depth = [write.index for write in weights.writes]
        axes[0].plot(depth, weights.output_magnitude, "o-", ms=2.5, lw=1, color=colour, label=name)
        states = [(read.state, read.magnitude) for read in weights.reads]
        axes[1].plot(*zip(*states, strict=True), "o-", ms=2.5, lw=1, color=colour, label=name)
        axes[2].plot(depth, weights.gradient_norm, "o-", ms=2.5, lw=1, color=colour, label=name)
    titles = ("output of each sublayer", "input of each sublayer", "gradient norm of each output")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("sublayer", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_ylim(bottom=0.0)
    axes[0].set_ylabel("root mean square", fontsize=8)
    axes[0].legend(fontsize=7)
    panels = lower.subplots(1, len(maps), squeeze=False)[0]
    for axis, name in zip(panels, maps, strict=True):
        image = _draw_weights(axis, name, found[name])
    lower.colorbar(image, ax=list(panels), shrink=0.9, pad=0.01).ax.tick_params(labelsize=7)
    return figure


def _draw_weights(axis: Any, name: str, weights: DepthWeights) -> Any:
    columns = max(len(read.weights) for read in weights.reads)
    grid = [[*read.weights, *[float("nan")] * (columns - len(read.weights))] for read in weights.reads]
    image = axis.imshow(grid, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto", interpolation="nearest")
    axis.set_title(f"{name}: weight of each source", fontsize=9)
    axis.set_xlabel("source: 0 the embedding, i block i", fontsize=8)
    axis.set_ylabel("read, in order of depth", fontsize=8)
    axis.tick_params(labelsize=7)
    return image
