"""The pages say what the code does: generated parts are current, Python blocks run, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))

PYTHON_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PART = re.compile(r"<!-- generated: (?P<name>\S+) -->\n.*?<!-- end -->", re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)#]*)(#(?P<anchor>[^)]*))?\)")

# The pages are about the interface, and compiling their models with Inductor would take minutes.
WITHOUT_INDUCTOR = """
from attnres_passes.torch_private import inner_compilers
_compile_inner = inner_compilers.compile_inner
inner_compilers.compile_inner = lambda gm, inputs, inner, mode: _compile_inner(
    gm, inputs, "aot_eager" if inner == "inductor" else inner, None
)
"""


def run_python(*words: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the packages of this checkout and the models of the pages."""
    paths = [ROOT, ROOT / "passes", ROOT / "kernels", DOCS]
    inherited = os.environ.get("PYTHONPATH")
    search = os.pathsep.join([*map(str, paths), *([inherited] if inherited else [])])
    environment = {key: value for key, value in os.environ.items() if key != "ATTNRES_DUMP"}
    return subprocess.run(
        [sys.executable, *words],
        env={**environment, "PYTHONPATH": search},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


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
    if "transformers" in text:
        pytest.importorskip("transformers")
    script = tmp_path / f"{page.stem}.py"
    script.write_text(blocks_in_place(text))
    run = f"{WITHOUT_INDUCTOR}\nimport runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = run_python("-c", run, directory=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_generated_parts_are_up_to_date(tmp_path: Path) -> None:
    """The text of a captured graph depends on torch, so pages are compared under the version they name."""
    pytest.importorskip("transformers")
    made_with = re.search(r"made with torch (\S+) and transformers (\d+\.\d+)", (DOCS / "inspection.md").read_text())
    assert made_with is not None
    for package, found in zip(("torch", "transformers"), made_with.groups(), strict=True):
        if version(package).split(".")[:2] != found.split("."):
            pytest.skip(f"the pages were generated with {package} {found}")
    done = run_python(str(DOCS / "regenerate.py"), "--check", directory=tmp_path)
    assert done.returncode == 0, f"run `python docs/regenerate.py`\n{done.stdout}\n{done.stderr}"


def test_every_picture_is_on_a_page() -> None:
    shown = {link["target"] for page in PAGES for link in LINK.finditer(page.read_text())}
    assert {f"pictures/{path.name}" for path in (DOCS / "pictures").glob("*.svg")} <= shown


def test_every_part_is_on_its_page() -> None:
    """A part that is not on the page of its file is not kept up to date, and one without a function cannot be."""
    files = sorted((DOCS / "parts").glob("*.py"))
    function = re.compile(r"^@part\ndef (\w+)", re.MULTILINE)
    made = [(path.stem, name) for path in files for name in function.findall(path.read_text())]
    used = [(page.stem, name) for page in PAGES for name in PART.findall(page.read_text())]
    assert set(used) == set(made)


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
