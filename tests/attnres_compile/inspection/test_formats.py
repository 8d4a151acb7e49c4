"""Every format is well-formed, says the same, and holds nothing that its reader would take for its own signs."""

from __future__ import annotations

import dataclasses
import json
import sys
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import pytest

import attnres_compile.inspection.facts
from attnres_compile.inspection.facts.build import inspection_of
from attnres_compile.inspection.fold.folding import fold_streams
from attnres_compile.inspection.pictures.page import page
from attnres_compile.inspection.pictures.picture import svg
from attnres_compile.inspection.text.dot import dot
from attnres_compile.inspection.text.inspection_text import inspection_text
from tests.attnres_compile.inspection.models import explained

MODELS = ["deep_6", "toy_encoder_decoder", "mixed", "toy_post_norm", "broken_inside", "broken_before", "named"]
SVG = "{http://www.w3.org/2000/svg}"


def test_the_text_answers_in_order() -> None:
    text = str(explained("mixed"))
    sections = ["partly rewritten", "stream first.blocks:", "declined", "parameters added", "kernels:", "made with:"]
    places = [text.index(section) for section in sections]
    assert places == sorted(places)
    assert text.startswith("partly rewritten")


def test_the_text_folds_and_expands() -> None:
    explanation = explained("deep_6")
    lines = explanation.report().splitlines()
    assert [line for line in lines if "blocks.1-5.ln_1" in line and "x5" in line]
    lines = explanation.report(["3"]).splitlines()
    assert [line for line in lines if "blocks.3.ln_1" in line and "x" not in line.split()]


@pytest.mark.parametrize("name", MODELS)
def test_json_keeps_its_schema(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((files(attnres_compile.inspection.facts) / "inspection.schema.json").read_text())
    record = json.loads(json.dumps(explained(name).to_dict()))
    jsonschema.validate(record, schema)
    broken = record | {"exit_code": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


@pytest.mark.parametrize("name", MODELS)
def test_the_difference_is_one(name: str) -> None:
    explanation = explained(name)
    hunks = explanation.diff().split("--- ")[1:]
    assert len(hunks) == len(explanation.plan.streams)
    for hunk in hunks:
        _, plus, counts, *lines = hunk.splitlines()
        before = [line[1:] for line in lines if line[0] in " -"]
        after = [line[1:] for line in lines if line[0] in " +"]
        assert plus.startswith("+++ ")
        assert counts == f"@@ -1,{len(before)} +1,{len(after)} @@"
        assert any("depth_attention(b0" in line for line in after)
        assert not any("depth_attention" in line for line in before)


@pytest.mark.parametrize("name", MODELS)
def test_dot_is_read_by_graphviz_rules(name: str) -> None:
    pydot = pytest.importorskip("pydot")
    explanation = explained(name)
    [graph] = pydot.graph_from_dot_data(explanation.to_dot(["all"]))
    clusters = graph.get_subgraphs()
    assert len(clusters) == len(explanation.plan.streams)
    for cluster, stream in zip(clusters, explanation.plan.streams, strict=True):
        expected = sum(read.num_sources for read in stream.reads) + len(stream.writes)
        assert len(cluster.get_edges()) == expected


@pytest.mark.parametrize("name", MODELS)
def test_svg_is_xml_that_stands_alone(name: str) -> None:
    explanation = explained(name)
    root = ElementTree.fromstring(explanation.to_svg(["all"]))
    assert root.tag == f"{SVG}svg"
    assert not [element for element in root.iter() if "href" in " ".join(element.attrib)]
    assert not [element.tag for element in root.iter() if element.tag.endswith(("script", "image", "foreignObject"))]
    rows = [element for element in root.iter(f"{SVG}g") if element.get("class", "").startswith("row ")]
    sites = sum(len(stream.sites) + 1 for stream in explanation.inspection.streams)
    assert len(rows) == sites
    width, height = (float(root.get(side, "0")) for side in ("width", "height"))
    assert all(0 <= float(text.get("x", "0")) < width for text in root.iter(f"{SVG}text"))
    assert height > 0


def test_the_picture_has_a_dot_per_source() -> None:
    """Twelve writes in six blocks: the reads of an unfolded picture have as many dots as sources."""
    explanation = explained("deep_6")
    root = ElementTree.fromstring(explanation.to_svg(["all"]))
    after = [
        sum(circle.get("class") == "dot" for circle in row.iter(f"{SVG}circle")) - 1
        for row in root.iter(f"{SVG}g")
        if row.get("class") == "row read"
    ]
    assert after == [read.num_sources for read in explanation.plan.streams[0].reads]


class _Page(HTMLParser):
    """Elements that are open, and what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "link", "br") and tag not in ("path", "rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.mark.parametrize("name", MODELS)
def test_html_is_one_file(name: str) -> None:
    explanation = explained(name)
    text = explanation.to_html()
    parser = _Page()
    parser.feed(text)
    assert not parser.wrong
    assert not parser.open
    assert set(parser.references) <= {"data:,"}
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text


def test_html_and_svg_escape_what_users_name() -> None:
    explanation = explained("named")
    assert explanation.plan.streams[0].writes[0].module == "layers.<b>&0.linear"
    text = explanation.to_html()
    assert "alert(&" in text
    assert "<script>alert" not in text
    assert "layers.&lt;b&gt;&amp;0.linear" in text
    assert not [found for found in (text, explanation.to_svg()) if "<b>" in found]


def test_dot_quotes_what_users_name() -> None:
    pydot = pytest.importorskip("pydot")
    stream = explained("deep_6").inspection.streams[0]
    site = dataclasses.replace(stream.sites[0], module='a"b\\c')
    renamed = dataclasses.replace(stream, name='say "x"', sites=(site, *stream.sites[1:]))
    inspection = dataclasses.replace(explained("deep_6").inspection, streams=(renamed,))
    [graph] = pydot.graph_from_dot_data(dot(fold_streams(inspection)))
    [cluster] = graph.get_subgraphs()
    assert cluster.get_label() == '"say \\"x\\""'
    assert '"a\\"b\\\\c"' in [node.get_label() for node in cluster.get_nodes()]


def test_html_goes_to_a_file(tmp_path: Any) -> None:
    explanation = explained("deep_6")
    text = explanation.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text


def _calls(name: str) -> int:
    """Python calls of the whole inspection step of a model: facts, text, picture and page."""
    explanation = explained(name)
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        found = inspection_of(explanation.plan, explanation.graphs, ())
        inspection_text(fold_streams(found))
        svg(fold_streams(found))
        page(name, fold_streams(found), dict.fromkeys(found.nodes, ""))
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_as_the_model_does() -> None:
    """Counted calls, which no other load of the machine changes: four times the layers, about four times the work."""
    small, large = _calls("deep_6"), _calls("deep_24")
    assert large < 5 * small
