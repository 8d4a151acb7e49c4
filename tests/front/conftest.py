"""Child processes of these tests see the packages of this checkout, and torchvision as the tests see it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.front.command_line import FACTORIES
from tests.zoo.torchvision_shim import ensure_torchvision_imports

ROOT = Path(__file__).resolve().parents[2]

ensure_torchvision_imports()


@pytest.fixture
def child_environment() -> dict[str, str]:
    """Environment of a child Python process."""
    paths = [ROOT / "tests" / "front" / "child", ROOT, ROOT / "passes", ROOT / "kernels"]
    inherited = os.environ.get("PYTHONPATH")
    search = os.pathsep.join([*map(str, paths), *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": search, "PYTHONSAFEPATH": "1"}


@pytest.fixture
def in_directory(tmp_path, monkeypatch):
    (tmp_path / "toys.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("toys", None)
