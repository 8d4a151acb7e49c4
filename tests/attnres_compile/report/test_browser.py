"""The pages of reports in a real browser: tables shown, details unfolded, plots drawn, nothing said or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnres_compile.report.pages.html import report_page, sweep_page
from attnres_compile.report.pages.sweep_plot import sweep_svg
from attnres_compile.report.table import HEADERS
from tests.attnres_compile.report.test_formats import report_of, swept
from tests.browsing import Opened

pytestmark = pytest.mark.browser


def opened(browser: Any, file: Path, text: str, scheme: str = "light") -> Opened:
    file.write_text(text, encoding="utf-8")
    return Opened(browser, file, scheme)


def check_quiet(one: Opened) -> None:
    assert not one.said
    assert set(one.requested) <= {one.url, "data:,"}
    assert one.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "cut off on the right"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_shows_its_rows_and_unfolds_the_details(browser: Any, tmp_path: Path, scheme: str) -> None:
    report = report_of("gpt2-tiny")
    one = opened(browser, tmp_path / "report.html", report_page(report), scheme)
    first = one.page.locator("table").first
    assert [cell.inner_text().strip() for cell in first.locator("th").all()[: len(HEADERS)]] == list(HEADERS)
    assert first.locator("tbody tr").count() == len(report.shown(False))
    folded = one.page.locator("details table").first
    assert not folded.is_visible()
    one.page.locator("details summary").first.click()
    assert folded.is_visible()
    assert folded.locator("tbody tr").count() == sum(row.is_detail for row in report.rows)
    check_quiet(one)


def test_a_sweep_draws_its_points(browser: Any, tmp_path: Path) -> None:
    found = swept()
    one = opened(browser, tmp_path / "sweep.html", sweep_page(found))
    assert one.page.locator("svg").count() == 1
    assert one.page.locator("svg").bounding_box()["width"] > 300
    assert one.page.locator("table tbody tr").count() == len(found.points)
    check_quiet(one)
    alone = opened(browser, tmp_path / "sweep.svg", sweep_svg(found))
    assert alone.page.locator("svg").bounding_box()["width"] > 300
    assert not alone.said
