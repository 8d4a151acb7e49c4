"""What the tests of the pages share: where the pages are, and how their code is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *sorted(DOCS.rglob("*.md")))

PYTHON_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PART = re.compile(r"<!-- generated: (?P<name>\S+) -->\n.*?<!-- end -->", re.DOTALL)
PRINTED = "<!-- generated: printed -->"


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


def other_version() -> str:
    """What the generated parts were made with that is not installed; '' if they can be compared."""
    made_with = re.search(r"made with torch (\S+) and transformers (\d+\.\d+)", (DOCS / "inspection.md").read_text())
    assert made_with is not None
    if find_spec("transformers") is None:
        return "the pages were generated with transformers, which is not installed"
    for package, found in zip(("torch", "transformers"), made_with.groups(), strict=True):
        if version(package).split(".")[:2] != found.split("."):
            return f"the pages were generated with {package} {found}"
    return ""
