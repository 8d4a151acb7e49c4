"""The generated parts of the pages, and what their blocks of Python print, are what the code makes today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS, other_version, run_python


def test_generated_parts_are_up_to_date(tmp_path: Path) -> None:
    """The text of a captured graph depends on torch, so pages are compared under the version they name."""
    if other_version():
        pytest.skip(other_version())
    done = run_python(str(DOCS / "regenerate.py"), "--check", directory=tmp_path)
    assert done.returncode == 0, f"run `python docs/regenerate.py`\n{done.stdout}\n{done.stderr}"
