"""docs/quickstart.ipynb, run cell by cell: it prints what its page shows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PART, ROOT, other_version

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("transformers")

WITHOUT_INDUCTOR = "from page_runs import without_inductor\n_without = without_inductor()\n_without.__enter__()"


def test_the_notebook_prints_what_its_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [ROOT, ROOT / "passes", ROOT / "kernels", DOCS]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # else it warns of the folders that it will use later
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    book = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)  # the page shows them
    book.cells.insert(0, nbformat.v4.new_code_cell(WITHOUT_INDUCTOR))
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
        for cell in book.cells
        if cell.cell_type == "code"
    ]
    shown = re.findall(PART, (DOCS / "quickstart.md").read_text())
    assert sum(map(bool, printed)) == len(shown) == 4
    if not other_version():
        page = (DOCS / "quickstart.md").read_text()
        assert [text for text in map(as_shown, printed) if text] == [
            part[0].split("```text\n")[1].split("\n```")[0] for part in PART.finditer(page)
        ]


def as_shown(printed: str) -> str:
    """As a generated part holds it: without numbers of rounding and without space at the end."""
    return re.sub(r"\b\d\.\de-\d\d\b", "#.#e-##", printed).rstrip()
