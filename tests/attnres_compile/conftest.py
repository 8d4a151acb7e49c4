"""A small model; and where commands run: in a directory with factories, and in processes that see this checkout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.attnres_compile.cli.command_line import FACTORIES
from tests.zoo.torchvision_shim import ensure_torchvision_imports

ROOT = Path(__file__).resolve().parents[2]

ensure_torchvision_imports()


@pytest.fixture
def child_environment() -> dict[str, str]:
    """Environment of a child Python process."""
    paths = [ROOT / "tests" / "attnres_compile" / "child", ROOT, ROOT / "passes", ROOT / "kernels"]
    inherited = os.environ.get("PYTHONPATH")
    search = os.pathsep.join([*map(str, paths), *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": search, "PYTHONSAFEPATH": "1"}


@pytest.fixture
def in_directory(tmp_path, monkeypatch):
    (tmp_path / "toys.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("toys", None)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> str:
    """A configuration of two layers: compiling is what takes the time here."""
    file = tmp_path_factory.mktemp("gpt2") / "config.json"
    values = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 64, "n_positions": 16}
    file.write_text(json.dumps(values | {"n_layer": 2, "n_embd": 32, "n_head": 4}))
    return str(file)
