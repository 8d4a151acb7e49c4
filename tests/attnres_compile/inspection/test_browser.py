"""The page and the picture in a real browser: they render, fold and unfold, show tips, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from attnres_compile.inspection.fold.folding import fold_streams
from attnres_compile.inspection.pictures.page import page as page_text
from tests.attnres_compile.inspection.models import explained
from tests.browsing import Opened

pytestmark = pytest.mark.browser

PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 29)"}
SCHEMES = sorted(PAPER)
TOGGLE = ".skeleton summary"


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open the page of a model; afterwards it must have kept quiet and asked for nothing."""
    opened: list[Opened] = []

    def open_it(name: str, scheme: str = "light", **options: Any) -> Any:
        file = tmp_path / f"{name}.html"
        explained(name).to_html(file)
        opened.append(Opened(browser, file, scheme, **options))
        return opened[-1].page

    yield open_it
    for one in opened:
        assert not one.said
        assert set(one.requested) <= {one.url, "data:,"}
        one.page.close()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("deep_6", "light"), ("deep_6", "dark"), ("mixed", "dark"), ("toy_post_norm", "light"), ("named", "light")],
)
def test_it_renders(open_page: Any, name: str, scheme: str) -> None:
    page = open_page(name, scheme)
    explanation = explained(name)
    assert page.inner_text("#verdict") == explanation.inspection.headline
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[scheme]
    skeletons = page.query_selector_all(".skeleton")
    assert len(skeletons) == len(explanation.plan.streams)
    assert all(skeleton.bounding_box()["height"] > 150 for skeleton in skeletons)
    colours = page.evaluate(
        "[...document.querySelectorAll('.skeleton text.name')].map(text => getComputedStyle(text).fill)"
    )
    assert PAPER[scheme] not in colours


@pytest.mark.parametrize("name", ["deep_6", "toy_encoder_decoder", "named"])
def test_names_stay_in_their_boxes_and_strips_have_no_gaps(open_page: Any, name: str) -> None:
    page = open_page(name)
    for button in page.query_selector_all("button.all"):
        button.click()
    outside = page.evaluate(
        """() => [...document.querySelectorAll('.skeleton text.name')].filter(text => {
            const name = text.getBoundingClientRect(), box = text.previousElementSibling.getBoundingClientRect();
            return box.width && (name.left < box.left || name.right > box.right || name.bottom > box.bottom + 1);
        }).map(text => text.textContent)"""
    )
    assert not outside
    gaps = page.evaluate(
        """() => [...document.querySelectorAll('.skeleton')].flatMap(skeleton => {
            const strips = [...skeleton.querySelectorAll('svg')].map(strip => strip.getBoundingClientRect())
                .filter(strip => strip.height);
            return strips.slice(1).map((strip, k) => strip.top - strips[k].bottom);
        })"""
    )
    assert gaps
    assert all(abs(gap) < 0.01 for gap in gaps)


def test_a_folded_layer_opens_by_click_and_by_key(open_page: Any) -> None:
    page = open_page("deep_6")
    folded, layer = page.locator(".folded"), page.get_by_text("blocks.3", exact=True)
    assert folded.is_visible()
    assert not layer.is_visible()
    page.click(TOGGLE)
    assert layer.is_visible()
    assert not folded.is_visible()
    page.focus(TOGGLE)
    page.keyboard.press("Enter")
    assert folded.is_visible()
    assert not layer.is_visible()


def test_all_layers_open_and_close_together(open_page: Any) -> None:
    page = open_page("toy_encoder_decoder")
    folded = page.locator(".folded")
    page.click("button.all")
    assert not folded.is_visible()
    assert page.inner_text("button.all") == "fold all"
    page.click("button.all")
    assert folded.is_visible()
    assert page.inner_text("button.all") == "unfold all"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hovering_shows_source_line_and_shape(open_page: Any, scheme: str) -> None:
    page = open_page("deep_6", scheme)
    tip = page.locator("#tip")
    assert not tip.is_visible()
    page.locator(".folded g.row.read").first.hover()
    assert tip.is_visible()
    said = tip.inner_text()
    row = explained("deep_6").inspection.streams[0].sites[4]
    assert "blocks.1-5.ln_1" in said
    assert Path(row.source).name in said
    assert row.shape in said
    assert "3-11 sources" not in said
    assert "read of 2-6 sources, two-phase" in said
    page.locator("#verdict").hover()
    assert not tip.is_visible()


def test_graphs_are_folded_away_until_they_are_opened(open_page: Any) -> None:
    page = open_page("deep_6")
    graph = page.locator("#graphs pre").last
    assert not graph.is_visible()
    page.get_by_text("lowered: ").click()
    assert graph.is_visible()
    assert graph.inner_text().strip() == explained("deep_6").text("lowered").strip()


def test_without_scripts_it_folds_and_tips_are_the_browsers(open_page: Any) -> None:
    page = open_page("deep_6", java_script_enabled=False)
    assert page.locator("g.row title").count() > 10
    assert not page.locator("button.all").is_visible()
    page.click(TOGGLE)
    assert page.get_by_text("blocks.3", exact=True).is_visible()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["toy_encoder_decoder", "toy_post_norm", "named"])
def test_the_picture_alone(browser: Any, tmp_path: Path, name: str, scheme: str) -> None:
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "picture.svg").write_text(explained(name).to_svg(), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text('<!DOCTYPE html><link rel="icon" href="data:,"><img src="picture.svg">')
    opened = Opened(browser, frame, scheme)
    size = opened.page.evaluate("document.images[0].decode().then(() => document.images[0].naturalWidth)")
    assert size >= 760
    image = Image.open(BytesIO(opened.page.locator("img").screenshot())).convert("RGB")
    assert f"rgb{image.getpixel((2, 2))}" == PAPER[scheme]
    assert len(image.getcolors(100_000)) > 20
    assert not opened.said
    opened.page.close()


def test_graphs_of_ten_thousand_nodes(browser: Any, tmp_path: Path) -> None:
    """Longer than any wait of this browser, and it would fail."""
    explanation = explained("deep_24")
    lines = explanation.text("lowered").splitlines()
    text = "\n".join(lines[k % len(lines)] for k in range(10_000))
    file = tmp_path / "large.html"
    graphs = dict.fromkeys(explanation.inspection.nodes, text)
    file.write_text(page_text("large", fold_streams(explanation.inspection), graphs), encoding="utf-8")
    opened = Opened(browser, file, "light")
    opened.page.get_by_text("captured: ").click()
    assert opened.page.locator("#graphs details[open] pre").bounding_box()["height"] > 300
    assert not opened.said
    opened.page.close()
