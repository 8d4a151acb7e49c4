"""The plot of a sweep: as SVG, drawn here, or as PNG by matplotlib, where it is installed."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from html import escape

from attnres_compile.models.errors import MissingExtraError
from attnres_compile.report.block_sweep import BlockSweep, SweepPoint

WIDTH, HEIGHT = 760, 300
_PANEL, _TOP, _BOTTOM, _LEFT, _GAP = 320, 56, 250, 50, 60
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600}.axis{stroke:#999}.line{fill:none;"
    "stroke:#1f6feb;stroke-width:2}.dot{fill:#1f6feb}.chosen{fill:#d1242f}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.axis{stroke:#666}}"
)

Value = Callable[[SweepPoint], float]
PANELS: tuple[tuple[str, Value], ...] = (
    ("memory traffic of the residual path, x plain", lambda point: point.io_bytes / point.plain_io_bytes),
    ("sources of the deepest read", lambda point: float(point.sources)),
)


def sweep_svg(sweep: BlockSweep) -> str:
    """A picture of two panels over the number of blocks, the configured one in red."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(sweep.model, quote=True)}: cost over the number of blocks">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="18">{escape(sweep.model)}</text>',
    ]
    for index, (title, value) in enumerate(PANELS):
        parts += _panel(sweep.points, title, value, _LEFT + index * (_PANEL + _GAP))
    return "\n".join([*parts, "</svg>"])


def _panel(points: Sequence[SweepPoint], title: str, value: Value, left: float) -> list[str]:
    highest = max(map(value, points))
    step = _PANEL / max(1, len(points) - 1)
    places = [
        (left + index * step, _BOTTOM - (_BOTTOM - _TOP) * value(point) / highest) for index, point in enumerate(points)
    ]
    drawn = [
        f'<text x="{left}" y="{_TOP - 18}">{escape(title)}</text>',
        f'<line class="axis" x1="{left}" y1="{_BOTTOM}" x2="{left + _PANEL}" y2="{_BOTTOM}"/>',
        f'<text x="{left + _PANEL}" y="{HEIGHT - 8}" text-anchor="end">blocks</text>',
        f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>',
    ]
    for point, (x, y) in zip(points, places, strict=True):
        kind = "dot chosen" if point.is_chosen else "dot"
        drawn += [
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
            f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value(point):.3g}</text>',
            f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{point.num_blocks}</text>',
        ]
    return drawn


def sweep_png(sweep: BlockSweep) -> bytes:
    """Two panels drawn by matplotlib. Raises MissingExtraError if it is not installed."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingExtraError(
            "PNG is drawn by matplotlib, which is not installed: run `pip install 'attnres-compile[plot]'`, or write "
            "SVG, which needs nothing"
        ) from error
    figure = figures.Figure(figsize=(10, 4), layout="constrained")
    labels = [str(point.num_blocks) for point in sweep.points]
    for axes, (title, value) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        heights = [value(point) for point in sweep.points]
        axes.plot(labels, heights, marker="o")
        for label, height, point in zip(labels, heights, sweep.points, strict=True):
            if point.is_chosen:
                axes.plot([label], [height], marker="o", color="tab:red")
        axes.set(title=title, xlabel="blocks", ylim=(0, None))
    figure.suptitle(sweep.model)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
