"""A recording as a picture: heatmaps as in the paper's Fig. 8, magnitudes and gradient norms as in its Fig. 5."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from attnres_compile.model.errors import RecordingError
from attnres_compile.recording.recorded import Recorded, RecordedRead, RecordedWrite, Sublayer

_TITLES = {
    Sublayer.MIXER: "before attention",
    Sublayer.CHANNEL: "before MLP",
    Sublayer.UNKNOWN: "before other sublayers",
    Sublayer.OUTPUT: "before the output",
}
_ROW = 0.24
"""Height of a row of a heatmap, in inches."""
_COLUMN = 0.42
_NUMBERS_UP_TO = 24
"""Rows of a heatmap whose cells also show their numbers."""


def plot(weights: Recorded, path: str | Path | None) -> Any:
    """Draw a recording, for ``Views.plot``.

    Args:
        weights: what was recorded.
        path: where to write the picture, if anywhere; its ending chooses the format.

    Returns:
        The matplotlib Figure.

    Raises:
        RecordingError: matplotlib is not installed, or the picture cannot be written there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RecordingError(
            "drawing needs the package matplotlib; install it: pip install 'attnres-compile[plot]'."
        ) from error
    streams = [name for name in weights.streams if any(write.stream == name for write in weights.writes)]
    reads = {name: _by_sublayer(weights, name) for name in streams}
    heights = [_height(reads[name]) for name in streams]
    columns = max(len(read.weights) for read in weights.reads)
    width = max(9.0, 2.4 + 3 * _COLUMN * columns + 3 * 1.6)
    figure = Figure(figsize=(width, sum(heights) + 3.2 * len(streams)), layout="constrained")
    parts = figure.subfigures(len(streams), 1, squeeze=False, height_ratios=[height + 3.2 for height in heights])
    for name, height, (part,) in zip(streams, heights, parts, strict=True):
        upper, lower = part.subfigures(2, 1, height_ratios=[height, 3.2])
        _draw_heatmaps(upper, reads[name])
        _draw_lines(lower, [write for write in weights.writes if write.stream == name])
        part.suptitle(f"{weights.model}, stream {name}" if name else weights.model)
    if path is not None:
        _save(figure, Path(path))
    return figure


def _by_sublayer(weights: Recorded, stream: str) -> dict[Sublayer, list[RecordedRead]]:
    """The reads of a stream under what they feed, in the order of the titles; kinds without a read are left out."""
    found = {
        kind: [read for read in weights.reads if read.stream == stream and read.before == kind] for kind in _TITLES
    }
    return {kind: reads for kind, reads in found.items() if reads}


def _height(reads: dict[Sublayer, list[RecordedRead]]) -> float:
    return 1.3 + _ROW * max(len(of_kind) for of_kind in reads.values())


def _draw_heatmaps(figure: Any, reads: dict[Sublayer, list[RecordedRead]]) -> None:
    """One heatmap per kind of sublayer: a row per read, in depth order, a column per source; one scale for all."""
    columns = max(len(read.weights) for of_kind in reads.values() for read in of_kind)
    rows = max(map(len, reads.values()))
    axes = figure.subplots(1, len(reads), squeeze=False)[0]
    image = None
    for axis, (kind, of_kind) in zip(axes, reads.items(), strict=True):
        grid = [[*read.weights, *[float("nan")] * (columns - len(read.weights))] for read in of_kind]
        image = axis.imshow(grid, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        axis.set_ylim(rows - 0.5, -0.5)
        axis.set_title(_TITLES[kind], fontsize=10)
        axis.set_xlabel("source: 0 the root, i block i", fontsize=8)
        axis.set_xticks(range(columns))
        axis.set_yticks(range(len(of_kind)), [read.module or f"s_{read.state}" for read in of_kind])
        axis.tick_params(labelsize=7)
        axis.spines[:].set_visible(False)
        if len(of_kind) <= _NUMBERS_UP_TO:
            _draw_numbers(axis, of_kind)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.9, pad=0.01)
    bar.set_label("mean weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_numbers(axis: Any, reads: list[RecordedRead]) -> None:
    """The weight in each cell; that of an open block is in brackets."""
    for row, read in enumerate(reads):
        for column, weight in enumerate(read.weights):
            is_open = read.is_open and column == len(read.weights) - 1
            text = f"({weight:.2f})" if is_open else f"{weight:.2f}"
            colour = "black" if weight > 0.6 else "white"
            axis.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)


def _draw_lines(figure: Any, writes: list[RecordedWrite]) -> None:
    """Magnitudes and, if there was a backward pass, gradient norms over depth, with the ends of blocks marked."""
    has_gradients = any(write.gradient_norm is not None for write in writes)
    axes = figure.subplots(1, 2 if has_gradients else 1, squeeze=False)[0]
    depth = [write.index for write in writes]
    axes[0].plot(depth, [write.output_magnitude for write in writes], "o-", ms=3, label="output of the sublayer")
    axes[0].plot(depth, [write.block_magnitude for write in writes], "s--", ms=3, label="sum of its block so far")
    axes[0].set_title("magnitude (root mean square)", fontsize=10)
    axes[0].legend(fontsize=7)
    if has_gradients:
        norms = [float("nan") if write.gradient_norm is None else write.gradient_norm for write in writes]
        axes[1].plot(depth, norms, "o-", ms=3, color="tab:red")
        axes[1].set_title("gradient norm", fontsize=10)
    ends = [one.index + 0.5 for one, other in itertools.pairwise(writes) if one.block != other.block]
    for axis in axes:
        axis.set_xlabel("sublayer; a line ends each block", fontsize=8)
        axis.set_ylim(bottom=0.0)
        axis.tick_params(labelsize=7)
        for end in ends:
            axis.axvline(end, color="0.8", lw=0.8)


def _save(figure: Any, path: Path) -> None:
    known = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise RecordingError(f"{path} does not end like a picture; use one of {', '.join(known)}.")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise RecordingError(f"{path} cannot be written ({error}); pass a path that you can write to.") from error
