"""The picture alone: an SVG document that needs no other file, in light and dark."""

from __future__ import annotations

import textwrap
from html import escape
from importlib.resources import files

from attnres_compile.inspection.fold.folding import FoldedInspection
from attnres_compile.inspection.pictures.strips import flat, strips_of
from attnres_compile.inspection.text.inspection_text import stream_line

_MARGIN, _NARROWEST, _LINE, _CHARACTERS = 20, 760, 18, 115


def style(name: str) -> str:
    """A style sheet of this package."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def svg(inspection: FoldedInspection) -> str:
    """All streams under one another; the reasons instead if there are none."""
    drawn = [strips_of(stream, unfolds=False) for stream in inspection.streams]
    width = max(_NARROWEST, *(one.width for one in drawn)) if drawn else _NARROWEST
    parts, y = _words(inspection.facts.headline, _MARGIN + 16, "headline")
    for stream, one in zip(inspection.streams, drawn, strict=True):
        lines, y = _words(stream.facts.name, y + 14, "stream")
        more, y = _words(stream_line(stream.facts), y, "small")
        parts += lines + more
        for strip in (one.head, *flat(one.layers)):
            parts.append(f'<g transform="translate({_MARGIN} {y})">{strip.body}</g>')
            y += strip.height
        y += _MARGIN
    for decline in inspection.facts.plan.declined:
        lines, y = _words(f"declined: {decline}", y + 6, "small")
        parts += lines
    for found in inspection.facts.breaks:
        lines, y = _words(f"graph break at {found.source.rpartition('/')[2]}: {found.reason}", y + 6, "small")
        parts += lines
    size = f'width="{width + 2 * _MARGIN}" height="{y + _MARGIN}"'
    box = f'viewBox="0 0 {width + 2 * _MARGIN} {y + _MARGIN}"'
    sheet = f"<style>{style('picture.css')}</style>"
    paper = '<rect class="paper" width="100%" height="100%"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="attnres" {size} {box} role="img">'
    title = f"<title>{escape(inspection.facts.headline)}</title>"
    return "\n".join([head, title, sheet, paper, *parts, "</svg>"]) + "\n"


def _words(text: str, y: int, kind: str) -> tuple[list[str], int]:
    """Lines of text from ``y`` down, and where the next thing may stand."""
    lines = textwrap.wrap(text, _CHARACTERS)
    drawn = [
        f'<text class="{kind}" x="{_MARGIN}" y="{y + _LINE * index}">{escape(line)}</text>'
        for index, line in enumerate(lines)
    ]
    return drawn, y + _LINE * len(lines)
