"""Goldens: what is compared, what is accepted, and that nothing is accepted that was not named."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
from pathlib import Path
from tests import golden_text
golden_text.GOLDEN = Path(__file__).parent / "golden"

def test_of_one(): golden_text.check_golden("folder/one", "now")
def test_of_two(): golden_text.check_golden("folder/two", "now")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tests and their goldens, which are not what the tests have now."""
    (tmp_path / "golden" / "folder").mkdir(parents=True)
    (tmp_path / "test_it.py").write_text(TESTS)
    for name in ("one", "two"):
        (tmp_path / "golden" / "folder" / f"{name}.txt").write_text("before\n")
    return tmp_path


def goldens(folder: Path) -> list[str]:
    return [(folder / "golden" / "folder" / f"{name}.txt").read_text().strip() for name in ("one", "two")]


def pytest_in(folder: Path, accept: str | None, *arguments: str) -> tuple[int, str]:
    """The exit status of a run of the tests in ``folder``, and what it prints."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "ATTNRES_"))}
    environment["PYTHONPATH"] = str(ROOT)
    environment |= {} if accept is None else {"ATTNRES_ACCEPT": accept}
    command = [sys.executable, "-m", "pytest", "-p", "tests.golden_text", "-p", "no:cacheprovider", *arguments]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return run.returncode, run.stdout + run.stderr


def test_a_changed_golden_fails_and_its_message_accepts_that_one(folder: Path) -> None:
    code, printed = pytest_in(folder, None)
    assert code == 1
    assert goldens(folder) == ["before", "before"]
    assert re.search(r"-before\nE +\+now", printed), printed
    command = re.search(r"ATTNRES_ACCEPT=(folder/one) python -m pytest (\S+)", printed)
    assert command is not None, printed
    assert command[2] == "test_it.py::test_of_one"
    code, printed = pytest_in(folder, command[1], *shlex.split(command[2]))
    assert code == 0, printed
    assert goldens(folder) == ["now", "before"]


@pytest.mark.parametrize(
    ("accept", "after", "fails"),
    [
        ("folder/two", ["before", "now"], True),
        ("folder/one,folder/two", ["now", "now"], False),
        ("folder/*", ["now", "now"], False),
        ("*/t?o", ["before", "now"], True),
    ],
)
def test_what_is_named_is_accepted_and_nothing_else(folder: Path, accept: str, after: list[str], fails: bool) -> None:
    code, printed = pytest_in(folder, accept)
    assert (goldens(folder), code) == (after, int(fails)), printed


@pytest.mark.parametrize("accept", ["1", "", "folder/one,", "folder/one,1"])
def test_a_name_that_is_none_stops_the_run_and_says_how_to_name(folder: Path, accept: str) -> None:
    code, printed = pytest_in(folder, accept)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert f"ATTNRES_ACCEPT={accept!r} names no golden: give paths in tests/golden" in printed
    assert goldens(folder) == ["before", "before"]


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_a_name_that_nothing_checks_fails_the_run(folder: Path, processes: tuple[str, ...]) -> None:
    if processes:
        pytest.importorskip("xdist")
    code, printed = pytest_in(folder, "folder/*,folder/tow", *processes)
    assert code == 1
    assert printed.count("ATTNRES_ACCEPT names folder/tow, and no golden of that name was checked") == 1
    assert "names folder/*" not in printed
    assert "2 passed" in printed
