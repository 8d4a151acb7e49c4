"""The picture of a stream as strips, one per row, that stand under one another with no gap.

Each strip is drawn by itself: rails and spine run through it from edge to edge. So a folded layer and the same layer
unfolded can take each other's place without any other strip being drawn anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from html import escape

from attnres_compile.inspection.facts.facts import Site, StreamFacts
from attnres_compile.inspection.fold.folding import FoldedStream
from attnres_compile.inspection.fold.layers import Layer, Row
from attnres_compile.inspection.pictures.geometry import BORDER, HEAD, LAYER_HEAD, ROW, SPINE, Geometry, clipped
from attnres_passes.ir.plan import short_source

COLOURS = 6
"""Bands of blocks take turns in as many colours (``band-0`` .. in picture.css)."""

_HALF = ROW // 2


@dataclass(frozen=True)
class Strip:
    """One row. body: SVG elements, drawn from (0, 0); height in pixels."""

    body: str
    height: int


@dataclass(frozen=True)
class LayerStrips:
    """One layer. head: its name, if it has one; rows: folded, if it is; unfolded: each of its repetitions."""

    label: str
    repeats: int
    head: Strip | None
    rows: tuple[Strip, ...]
    unfolded: tuple[LayerStrips, ...] = ()


@dataclass(frozen=True)
class StreamStrips:
    """The picture of a stream. width in pixels; head: titles and root; layers: in order."""

    width: int
    head: Strip
    layers: tuple[LayerStrips, ...]


def strips_of(stream: FoldedStream, unfolds: bool = True) -> StreamStrips:
    """Draw a stream.

    Args:
        stream: what is drawn.
        unfolds: also draw each repetition of folded layers.
    """
    layers = stream.layers
    labels = [_relative(layer, row) for layer in layers for row in layer.rows] + [layer.label for layer in layers]
    drawing = _Drawing(stream.facts, Geometry.of(stream.facts, labels))
    return StreamStrips(drawing.at.width, drawing.head(), tuple(drawing.layer(layer, unfolds) for layer in layers))


def _relative(layer: Layer, row: Row) -> str:
    """The path of a row within its layer."""
    prefix = f"{layer.label}."
    return row.module.removeprefix(prefix) if layer.label else row.module


@dataclass
class _Drawing:
    """Draws from top to bottom. begun: the last block that has a write so far; block: those named last."""

    stream: StreamFacts
    at: Geometry
    begun: int = 0
    block: str = field(default="", init=False)

    def head(self) -> Strip:
        """Titles of the panels, names of the rails, and the root."""
        at = self.at
        root_y = HEAD - _HALF
        root = clipped(self.stream.root)
        tip = f"{self.stream.root}\nroot of the stream: {self.stream.shape}\n{short_source(self.stream.root_source)}"
        names = "".join(
            _text(at.rail(rail), 36, at.rail_name(rail), "rail-name")
            for rail in range(at.rails + 1)
            if at.rails <= 12 or rail % 2 == 0
        )
        rails = f'<circle class="root" cx="{SPINE}" cy="{root_y}" r="4"/>' + _line(SPINE, root_y, SPINE, HEAD, "spine")
        rails += f'<circle class="root" cx="{at.rail(0)}" cy="{root_y}" r="4"/>'
        rails += _line(at.rail(0), root_y, at.rail(0), HEAD, "rail")
        words = _text(SPINE - 8, 16, "before", "panel") + _text(at.band, 16, "after", "panel")
        blocks = "blocks" if at.blocks_per_rail == 1 else f"blocks, by {at.blocks_per_rail}"
        words += _text(at.band, 36, blocks, "small")
        words += _text(at.box, root_y + 4, root, "root-name") + _text(at.box_after, root_y + 4, root, "root-name")
        return Strip(f"{words}{names}{_group('root', tip, rails)}", HEAD)

    def layer(self, layer: Layer, unfolds: bool) -> LayerStrips:
        begun = self.begun
        unfolded: tuple[LayerStrips, ...] = ()
        if layer.is_folded and unfolds:
            self.block = ""
            unfolded = tuple(self.layer(one, False) for one in layer.unfolded())
            self.begun, self.block = begun, ""
        head = self._layer_head(layer) if layer.label else None
        return LayerStrips(
            layer.label,
            layer.repeats,
            head,
            tuple(strip for row in layer.rows for strip in (*self._borders(row), self._row(layer, row))),
            unfolded,
        )

    def _layer_head(self, layer: Layer) -> Strip:
        at = self.at
        lines = _line(SPINE, 0, SPINE, LAYER_HEAD, "spine")
        lines += self._band(layer.rows[0], LAYER_HEAD) + self._rails(0, LAYER_HEAD)
        mark = '<path class="mark" d="M42 11 l6 4 l-6 4 z"/>' if layer.is_folded else ""
        times = f'<tspan class="times" dx="8">x{layer.repeats}</tspan>' if layer.is_folded else ""
        name = escape(clipped(layer.label))
        label = f'<text class="layer" x="{at.box - 4}" y="19">{name}{times}</text>'
        return Strip(f"{lines}{mark}{label}", LAYER_HEAD)

    def _borders(self, row: Row) -> Iterator[Strip]:
        """A line across both panels, with what begins or ends there, and what of the stream crosses it."""
        if not row.borders:
            return
        at, middle = self.at, BORDER // 2
        lines = _line(SPINE, 0, SPINE, BORDER, "spine") + self._rails(0, BORDER)
        line = f'<path class="wire border" stroke-dasharray="6 4" d="M0 {middle}H{at.band_end}"/>'
        words = _text(at.box, middle - 3, row.border, "small") + _text(at.info, middle - 3, row.crossing, "small")
        tip = f"{row.border}\n{row.crossing} cross it"
        yield Strip(_group("crossed", tip, lines + line + words), BORDER)

    def _row(self, layer: Layer, row: Row) -> Strip:
        at, site = self.at, row.first
        is_last = any(one is self.stream.sites[-1] for one in row.sites)
        label = escape(clipped(_relative(layer, row)))
        before = _line(SPINE, 0, SPINE, _HALF if is_last else ROW, "spine")
        before += self._before(site, label)
        after = self._band(row, ROW) + self._band_name(row) + self._rails(0, _HALF if is_last else ROW)
        after += self._read(row) if site.kind == "read" else self._write(row)
        after += _box(at.box_after, at.box_width, label, site.kind)
        return Strip(_group(site.kind, _tip(row), before + after), ROW)

    def _before(self, site: Site, label: str) -> str:
        at = self.at
        dot = f'<circle class="dot" cx="{SPINE}" cy="{_HALF}" r="3"/>'
        mark = _arrow(at.box) + dot if site.kind == "read" else _plus(SPINE, "plus")
        return _line(SPINE, _HALF, at.box, _HALF, "wire") + mark + _box(at.box, at.box_width, label, site.kind)

    def _band(self, row: Row, height: int) -> str:
        """The background of the blocks of a row."""
        at = self.at
        blocks = _blocks(row)
        if not blocks:
            return ""
        colour = f"band-{(blocks[0] - 1) % COLOURS}" if len(blocks) == 1 else "band-many"
        return f'<rect class="{colour}" x="{at.band}" y="0" width="{at.band_end - at.band}" height="{height}"/>'

    def _band_name(self, row: Row) -> str:
        """The name of the blocks of a row, where they begin."""
        if not row.block or row.block == self.block:
            return ""
        self.block = row.block
        return _text(self.at.band + 8, _HALF + 4, f"block{'s' if len(_blocks(row)) > 1 else ''} {row.block}", "small")

    def _rails(self, top: int, bottom: int) -> str:
        rails = self.at.rail_of(self.begun) + 1
        path = "".join(f"M{self.at.rail(rail)} {top}V{bottom}" for rail in range(rails))
        return f'<path class="rail" d="{path}"/>'

    def _write(self, row: Row) -> str:
        at = self.at
        rails = sorted({at.rail_of(block) for block in _blocks(row)})
        first, begun_rail = at.rail(rails[0]), at.rail_of(self.begun)
        new = "".join(f"M{at.rail(rail)} {_HALF}V{ROW}" for rail in range(begun_rail + 1, rails[-1] + 1))
        self.begun = max(self.begun, *_blocks(row))
        marks = "".join(_plus(at.rail(rail), "plus" if len(rails) == 1 else "plus some") for rail in rails)
        lines = f'<path class="rail" d="{new}"/>' if new else ""
        return lines + _line(first, _HALF, at.box_after, _HALF, "wire") + marks

    def _read(self, row: Row) -> str:
        at = self.at
        counts = [site.sources or 1 for site in row.sites]
        always, ever = at.rail_of(min(counts) - 1), at.rail_of(max(counts) - 1)
        dots = "".join(
            f'<circle class="{"dot" if rail <= always else "dot some"}" cx="{at.rail(rail)}" cy="{_HALF}" r="3.5"/>'
            for rail in range(ever + 1)
        )
        edge = _line(at.rail(0), _HALF, at.box_after, _HALF, "edge" if max(counts) > 1 else "wire")
        many = "" if max(counts) == 1 else _text(at.info, _HALF + 4, _read_info(row), "small")
        node = f'<path class="softmax" d="M{at.node - 7} {_HALF}l7 -7l7 7l-7 7z"/>' if max(counts) > 1 else ""
        return edge + dots + node + _arrow(at.box_after) + many


def _blocks(row: Row) -> list[int]:
    return sorted({site.block for site in row.sites if site.block is not None})


def _read_info(row: Row) -> str:
    return ", ".join(part for part in (f"{row.sources} sources", row.schedule.replace("_", "-")) if part)


def _tip(row: Row) -> str:
    """What hovering over a row shows."""
    site = row.first
    what = f"write into block {row.block}" if site.kind == "write" else f"read of {row.sources} source"
    if site.kind == "read":
        what += "s" if row.sources != "1" else ""
        what += "" if site.normed else ", not normed"
        what += f", {row.schedule.replace('_', '-')}" if row.schedule else ""
    stage = f"pipeline stage {row.stage}" if row.stage else ""
    times = f"{len(row.sites)} layers alike" if len(row.sites) > 1 else ""
    return "\n".join(part for part in (row.module, what, row.shape, short_source(site.source), stage, times) if part)


def _group(kind: str, tip: str, body: str) -> str:
    return f'<g class="row {kind}"><title>{escape(tip)}</title>{body}</g>'


def _box(x: int, width: int, label: str, kind: str) -> str:
    radius = 9 if kind == "read" else 3
    box = f'<rect class="box" x="{x}" y="3" width="{width}" height="{ROW - 6}" rx="{radius}"/>'
    return f'{box}<text class="name" x="{x + 9}" y="{_HALF + 4}">{label}</text>'


def _line(x1: int, y1: int, x2: int, y2: int, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1} {y1}L{x2} {y2}"/>'


def _arrow(x: int) -> str:
    """The head of an arrow that ends at ``x``."""
    return f'<path class="arrow" d="M{x - 6} {_HALF - 3.5}L{x} {_HALF}L{x - 6} {_HALF + 3.5}z"/>'


def _plus(x: int, kind: str) -> str:
    circle = f'<circle class="{kind}" cx="{x}" cy="{_HALF}" r="5.5"/>'
    return f'{circle}<path class="cross" d="M{x - 3} {_HALF}h6M{x} {_HALF - 3}v6"/>'


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'


def flat(layers: Collection[LayerStrips]) -> Iterator[Strip]:
    """All strips as they are before anything is unfolded."""
    for layer in layers:
        if layer.head is not None:
            yield layer.head
        yield from layer.rows
