"""A real browser for tests of pages and pictures, and what a page did in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing(what: str) -> None:
    """Skip; on continuous integration, where a browser is installed, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and on continuous integration these tests must run")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        missing(f"needs a browser, and none of {', '.join(BROWSERS)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("needs the package playwright, which is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


class Opened:
    """A page, what it said on the console, and what it asked the network for."""

    def __init__(self, browser: Any, file: Path, scheme: str, **options: Any) -> None:
        self.page = browser.new_page(color_scheme=scheme, viewport={"width": 1250, "height": 900}, **options)
        self.said: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.url = file.as_uri()
        self.page.goto(self.url)
