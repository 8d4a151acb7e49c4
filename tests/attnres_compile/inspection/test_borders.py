"""Borders that a stream crosses, checkpoints and compiled parts, in every format."""

from __future__ import annotations

import json
from importlib import resources
from xml.etree import ElementTree

import pytest
import torch

import attnres_compile as ac
from attnres_compile.inspection.facts.facts import Border
from tests.attnres_compile.report.models import Layered

LAYERS = 4


def explained(setting: str, compiled: bool = False) -> ac.Explanation:
    model = Layered(8, 4, LAYERS, setting)
    if compiled:
        for layer in model.layers:
            layer.compile(backend="attnres", options={"inner": "eager"})
    return ac.explain(model, (torch.randn(1, 3, 8),), block_size=3)


def borders(explanation: ac.Explanation) -> list[tuple[str, Border]]:
    (stream,) = explanation.inspection.streams
    return [(site.module, site.border) for site in stream.sites if site.border is not None]


@pytest.mark.parametrize(
    ("setting", "compiled", "what"), [("layer", False, "checkpoint"), ("none", True, "compiled part")]
)
def test_layers_have_a_border_before_each_and_behind_the_last(setting: str, compiled: bool, what: str) -> None:
    """8 writes in blocks of 3: behind 0, 2, 4, 6 and 8 of them."""
    found = borders(explained(setting, compiled))
    assert [module for module, _ in found] == [*(f"layers.{k}.norms.0" for k in range(LAYERS)), "norm"]
    begins, ends = f"{what} begins", f"{what} ends"
    assert [border.what for _, border in found] == [begins, *[f"{ends}, next begins"] * (LAYERS - 1), ends]
    assert [(border.blocks, border.has_partial) for _, border in found] == [
        (1, False),
        (1, True),
        (2, True),
        (3, False),
        (3, True),
    ]


def test_what_crosses_is_what_the_next_read_attends_to() -> None:
    (stream,) = explained("layer").inspection.streams
    reads = [site for site in stream.sites if site.border is not None]
    assert all(site.kind == "read" and site.border.sources == site.sources for site in reads)


def test_every_format_draws_them() -> None:
    explanation = explained("layer")
    text = explanation.report(expand=("all",))
    assert text.count("border ") == LAYERS + 1
    assert "checkpoint ends, next begins: b0..b1 + partial sum" in text
    assert "checkpoint ends: b0..b2 + partial sum" in text
    folded = explanation.report()
    assert "checkpoint ends, next begins: b0..b(0-2) (+ partial sum)" in folded
    svg = explanation.to_svg(expand=("all",))
    ElementTree.fromstring(svg)
    assert svg.count('class="wire border"') == LAYERS + 1
    assert "b0..b1 + partial sum" in explanation.to_html()
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(
        resources.files("attnres_compile.inspection.facts").joinpath("inspection.schema.json").read_text()
    )
    data = json.loads(json.dumps(explanation.to_dict()))
    jsonschema.validate(data, schema)
    assert sum("border" in site for site in data["streams"][0]["sites"]) == LAYERS + 1


def test_a_model_without_borders_shows_none() -> None:
    explanation = explained("none")
    assert not borders(explanation)
    assert "border" not in explanation.report()
    assert 'class="wire border"' not in explanation.to_svg()
    assert all("border" not in site for site in explanation.to_dict()["streams"][0]["sites"])
