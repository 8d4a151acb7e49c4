"""The documentation site, built as `make site` does: strictly, without a network, with every link leading somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import attnres_compile
from attnres_compile.report.table import OverheadReport
from tests.browsing import Opened
from tests.docs.pages import DOCS, ROOT

pytest.importorskip("sphinx")
pytest.importorskip("furo")
pytest.importorskip("myst_parser")

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data")}
"""Attributes that a browser fetches by itself; of a ``link`` it is those that are not about the page's relations."""


class Page(HTMLParser):
    """The ids of a page, its links, and what a browser fetches to show it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loaded += [given[name] for of, name in LOADED if of == tag and name in given]
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning, such as of a link into the void, fails the build."""
    target = tmp_path_factory.mktemp("site")
    words = ["--fail-on-warning", "--keep-going", "--quiet", "-c", str(DOCS / "site"), "-d", str(target / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(ROOT), str(target / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / "html"


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def test_every_page_is_on_the_site(site: Path) -> None:
    missing = [
        page.relative_to(ROOT)
        for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
        if not (site / page.relative_to(ROOT)).with_suffix(".html").exists()
    ]
    assert not missing


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    """Also into pages that Sphinx knows nothing of, such as those with the text of a source file."""
    dead = [
        (path.name, link)
        for path, page in pages.items()
        for link in (*page.links, *page.loaded)
        if not leads(path, link, pages)
    ]
    assert not dead
    assert sum(len(page.links) for page in pages.values()) > 1000


def leads(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme in ("https", "http", "mailto")
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if parts.fragment and target in pages:
        return unquote(parts.fragment) in pages[target].ids
    return target.exists()


def test_pages_load_nothing_from_the_network(site: Path, pages: dict[Path, Page]) -> None:
    assert not [(path.name, url) for path, page in pages.items() for url in page.loaded if "//" in url]
    fetched = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", re.IGNORECASE)
    assert not [path.name for path in site.rglob("*.css") if fetched.search(path.read_text())]


def test_no_path_of_the_machine_that_built_it(site: Path) -> None:
    assert not [path.name for path in site.rglob("*.html") if str(ROOT) in path.read_text()]


def test_every_public_name_has_its_docstring_once(pages: dict[Path, Page], site: Path) -> None:
    named = re.findall(r"^\.\. auto\w+:: attnres_compile\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(attnres_compile.__all__)
    missing = {f"attnres_compile.{name}" for name in named} - pages[site / "docs" / "api.html"].ids
    assert not missing


def test_what_api_shows_of_a_docstring(site: Path) -> None:
    """Arguments with their descriptions, and errors that lead to their sections."""
    text = (site / "docs" / "api.html").read_text()
    assert "any module; its forward on the example inputs is what is analysed" in text
    assert 'href="errors.html#nostreamerror"' in text
    assert "<strong>Raises</strong>" in text


def source_pages(site: Path) -> Iterator[Path]:
    yield from (site / "source").rglob("*.py.html")


def test_source_files_are_shown(site: Path) -> None:
    backend = site / "source" / "attnres_compile" / "compile" / "backend.py.html"
    assert 'class="highlight"' in backend.read_text()
    assert "autograd" in (site / "source" / "kernels" / "attnres_kernels" / "autograd.html").read_text()
    assert len(list(source_pages(site))) > 50


@pytest.fixture(scope="session")
def records() -> dict[str, OverheadReport]:
    return {
        path.stem: OverheadReport.from_dict(json.loads(path.read_text())) for path in (DOCS / "overhead").glob("*.json")
    }


@pytest.fixture
def overhead(browser: Any, site: Path) -> Iterator[Opened]:
    opened = Opened(browser, site / "docs" / "overhead.html", "light")
    yield opened
    assert not opened.said  # no error on the console
    assert not [url for url in opened.requested if not url.startswith(("file:", "data:"))]
    opened.page.close()


def column(opened: Opened, table: str, heading: str) -> list[str]:
    """The shown cells of a column, from the top."""
    headings = [cell.inner_text() for cell in opened.page.query_selector_all(f"#{table} thead th")]
    place = next(k for k, text in enumerate(headings, start=1) if text.rstrip(" ▲▼") == heading)
    cells = opened.page.query_selector_all(f"#{table} tbody tr:not([hidden]) td:nth-child({place})")
    return [cell.inner_text() for cell in cells]


def click(opened: Opened, table: str, heading: str) -> None:
    opened.page.click(f"#{table} thead th button:text-is('{heading}')")


@pytest.mark.browser
def test_presets_are_sorted_by_number(overhead: Opened, records: dict[str, OverheadReport]) -> None:
    """By what the records hold, and not by the text of a cell, whose prefixes differ: 9.9 GFLOP, 1.2 TFLOP."""
    metric = "training FLOPs"
    value = {name: next(row.plain for row in report.rows if row.metric == metric) for name, report in records.items()}
    overhead.page.select_option("#overhead-kind", "plain")
    click(overhead, "overhead-presets", metric)
    assert column(overhead, "overhead-presets", "preset") == sorted(value, key=value.__getitem__)
    click(overhead, "overhead-presets", metric)
    assert column(overhead, "overhead-presets", "preset") == sorted(value, key=value.__getitem__, reverse=True)
    click(overhead, "overhead-presets", "preset")
    assert column(overhead, "overhead-presets", "preset") == sorted(value)


@pytest.mark.browser
def test_presets_are_searched(overhead: Opened) -> None:
    overhead.page.fill("#overhead-search", "QWEN3-0")
    assert column(overhead, "overhead-presets", "preset") == ["qwen3-0.6b"]
    overhead.page.select_option("#overhead-kind", "delta")  # made anew, and still searched
    assert column(overhead, "overhead-presets", "preset") == ["qwen3-0.6b"]


@pytest.mark.browser
def test_a_preset_opens_its_report(overhead: Opened, records: dict[str, OverheadReport]) -> None:
    overhead.page.click("#overhead-presets button.preset:text-is('llama-3-8b')")
    headings = ["metric", "plain", "attnres", "delta", "delta %", "how"]
    for every in (False, True):
        if every:
            overhead.page.check("#overhead-every")
        shown = list(zip(*(column(overhead, "overhead-rows", heading) for heading in headings), strict=True))
        expected = [row.cells() for row in records["llama-3-8b"].shown(details=every)]
        assert [(re.sub(r" \(\d+\)$", "", metric), *rest) for metric, *rest in shown] == expected
    # A number that is missing stays at the end, whichever way the rows are sorted.
    for _ in range(2):
        click(overhead, "overhead-rows", "delta %")
        assert column(overhead, "overhead-rows", "delta %")[-1] == "n/a"


@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "docs/index.html", "docs/api.html"])
def test_pages_open_without_a_network(browser: Any, site: Path, page: str) -> None:
    opened = Opened(browser, site / page, "light")
    opened.page.wait_for_selector(".sidebar-tree, .sidebar-brand")
    assert opened.page.url.endswith("docs/api.html" if "api" in page else "docs/index.html")
    assert not opened.said
    assert not [url for url in opened.requested if not url.startswith(("file:", "data:"))]
    opened.page.close()
