"""One HTML page that needs no other file and no network: pictures, tables and graphs of an inspection."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from attnres_compile.inspection.facts.facts import Verdict
from attnres_compile.inspection.fold.folding import FoldedInspection, FoldedStream
from attnres_compile.inspection.pictures.picture import style
from attnres_compile.inspection.pictures.strips import LayerStrips, Strip, strips_of
from attnres_compile.inspection.text.inspection_text import (
    added_elements,
    kernel_table,
    pairs,
    parameter_table,
    site_table,
    stream_line,
)
from attnres_compile.inspection.text.skeleton import skeleton_diff
from attnres_passes.ir.plan import short_source


def page(name: str, inspection: FoldedInspection, graphs: Mapping[str, str]) -> str:
    """The page of a model.

    Args:
        name: of the model.
        inspection: its facts.
        graphs: their text, by level.
    """
    facts = inspection.facts
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["short"] = short_source
    return environment.from_string(style("page.html.jinja")).render(
        name=name,
        inspection=facts,
        tone={Verdict.ALL: "all", Verdict.PARTLY: "partly", Verdict.NOTHING: "nothing"}[facts.verdict],
        streams=[_stream(stream) for stream in inspection.streams],
        parameters=parameter_table(facts.parameters),
        added=added_elements(facts),
        kernels=kernel_table(facts.kernels),
        diff=skeleton_diff(inspection).splitlines(),
        graphs=graphs,
        pairs=pairs,
        css=Markup(style("picture.css") + style("page.css")),
        script=Markup(style("page.js")),
    )


def _stream(stream: FoldedStream) -> dict[str, object]:
    """What the template shows of a stream; strips are SVG that escapes what it is given."""
    drawn = strips_of(stream)
    return {
        "name": stream.facts.name,
        "line": stream_line(stream.facts),
        "width": drawn.width,
        "head": _joined((drawn.head,), drawn.width),
        "layers": [_layer(layer, drawn.width) for layer in drawn.layers],
        "sites": site_table(stream),
    }


def _layer(layer: LayerStrips, width: int) -> dict[str, object]:
    return {
        "label": layer.label,
        "repeats": layer.repeats,
        "head": Markup() if layer.head is None else _joined((layer.head,), width),
        "rows": _joined(layer.rows, width),
        "unfolded": [_layer(one, width) for one in layer.unfolded],
    }


def _joined(strips: Collection[Strip], width: int) -> Markup:
    """Strips under one another in one SVG element."""
    parts, y = [], 0
    for strip in strips:
        parts.append(f'<g transform="translate(0 {y})">{strip.body}</g>' if y else strip.body)
        y += strip.height
    body = "".join(parts)
    return Markup(f'<svg width="{width}" height="{y}" viewBox="0 0 {width} {y}">{body}</svg>')
