"""The pages say what the code does: Python blocks run, links lead somewhere, nothing generated is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, PART, PRINTED, PYTHON_BLOCK, other_version, run_python

RUN = re.compile(r"^<!-- run: torchrun (?P<words>.*) -->$", re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)#]*)(#(?P<anchor>[^)]*))?\)")

# The pages are about the interface, and compiling their models with Inductor would take minutes.
RUNNER = """
import runpy
from page_runs import without_inductor

with without_inductor():
    runpy.run_path({script!r}, run_name="__main__")
"""


def blocks_in_place(page: str) -> str:
    """The Python blocks of a page, each on its own lines there, so that tracebacks name lines of the page."""
    lines = [""] * (page.count("\n") + 1)
    for block in PYTHON_BLOCK.finditer(page):
        first = page.count("\n", 0, block.start("code"))
        code = block["code"].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    text = PART.sub(lambda part: "\n" * part[0].count("\n"), page.read_text())
    if not PYTHON_BLOCK.search(text):
        pytest.skip("no Python block")
    if PRINTED in page.read_text() and not other_version():
        pytest.skip("its parts are what its blocks print: tests/docs/test_generated_parts.py runs them")
    if "transformers" in text:
        pytest.importorskip("transformers")
    script = tmp_path / f"{page.stem}.py"
    script.write_text(blocks_in_place(text))
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER.format(script=str(script)))
    launcher = RUN.search(text)
    words = ["-m", "torch.distributed.run", *launcher["words"].split()] if launcher else []
    done = run_python(*words, str(runner), directory=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_picture_is_on_a_page() -> None:
    shown = {link["target"] for page in PAGES for link in LINK.finditer(page.read_text())}
    assert {f"pictures/{path.name}" for path in (DOCS / "pictures").glob("*.svg")} <= shown


def test_every_part_is_on_its_page() -> None:
    """A part that is not on the page of its file is not kept up to date, and one without a function cannot be."""
    files = sorted((DOCS / "parts").glob("*.py"))
    function = re.compile(r"^@part\ndef (\w+)", re.MULTILINE)
    made = [(path.stem, name) for path in files for name in function.findall(path.read_text())]
    used = [(page.stem, name) for page in PAGES for name in PART.findall(page.read_text())]
    # Parts named ``printed`` hold what the page's own blocks print, and need no function.
    assert {one for one in used if one[1] != "printed"} == {one for one in made if one[1] != "printed"}


def test_names_of_pages_are_unique() -> None:
    """The parts of a page are found by its name alone."""
    names = [page.stem for page in PAGES if page.is_relative_to(DOCS)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.finditer(PYTHON_BLOCK.sub("", page.read_text())):
        if "://" in link["target"]:
            continue
        target = page if not link["target"] else (page.parent / link["target"])
        if not target.exists():
            dead.append(link["target"])
        elif link["anchor"] and link["anchor"] not in anchors(target.read_text()):
            dead.append(f"{link['target']}#{link['anchor']}")
    assert not dead


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_path_of_one_machine(page: Path) -> None:
    assert not re.findall(r"(?:/work|/home|/tmp|/root|site-packages)\S*", page.read_text())
