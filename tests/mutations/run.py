"""Runs the tests of each fault's area in a copy of the code that has the fault in it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.mutations.faults import ROOT, Fault

LIMIT = 1200
"""Seconds that the tests of one fault may take."""
WITHOUT = ""
"""Name of the verdict on the code without a fault."""
LIBRARIES = ("torch", "torch._dynamo", "torch._functorch.aot_autograd", "torch.distributed", "hypothesis", "networkx")


@dataclass(frozen=True)
class Verdict:
    """What the tests made of one fault.

    outcome: "caught" by a test that failed, "survived", "does not load" where no test could be collected, "limit" where
    time ran out; by: the test; seconds: of the run.
    """

    name: str
    file: str
    outcome: str
    by: str
    seconds: float


def copied_tree(folder: Path) -> Path:
    """A copy of all files that git knows or does not ignore, in a new folder below ``folder``."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    copy = folder / "copy"
    for name in names:
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    return copy


def load_libraries() -> None:
    """Load what all tests load, but nothing of ours: each run of tests is then a fork of this process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as tests/conftest.py has it without a GPU
    for name in LIBRARIES:
        importlib.import_module(name)
    ours = sorted(name for name in sys.modules if name.startswith("attnres_"))
    assert not ours, f"{ours[:3]} would not be those of a copy"


def run_tests(root: Path, tests: Sequence[str], stops: bool = True) -> tuple[str, str]:
    """Run tests in a copy of the code: "passed", "failed", "does not load" or "limit", and the first that failed.

    Args:
        root: of the copy.
        tests: paths and node ids.
        stops: at the first failure.
    """
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run_here(root, [f"--junitxml={report}", *tests, *(["-x"] if stops else [])])
    code = _code_of(child)
    if code is None:
        return "limit", ""
    if code == 0:
        return "passed", ""
    failed = _failed(report) if report.exists() else ""
    # 1: some tests failed; all else is about what could not be collected or run.
    if code == 1 and failed:
        return "failed", failed
    lines = (root / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "does not load", next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")


def _run_here(root: Path, arguments: Sequence[str]) -> NoReturn:
    """In a fork: be a process of the copy, run pytest, and end."""
    code = 70
    try:
        log = os.open(root / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(root)
        parts = (".", "passes", "kernels")
        folders, own = [str(root / part) for part in parts], [ROOT / part for part in parts]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
        sys.path[:] = [*folders, *(path for path in sys.path if path and Path(path).resolve() not in own)]
        sys.dont_write_bytecode = True
        for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
            del sys.modules[name]  # those of the copy are its own
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={root}", *arguments]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _code_of(child: int) -> int | None:
    """The exit code of a process; None if it has taken too long."""
    ends = time.monotonic() + LIMIT
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _failed(report: Path) -> str:
    for case in ET.parse(report).iter("testcase"):
        if any(case.find(kind) is not None for kind in ("failure", "error")):
            return f"{case.get('classname')}::{case.get('name')}"
    return ""


def judge(fault: Fault) -> Verdict:
    """Put one fault into a fresh copy and run its tests."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        root = copied_tree(Path(folder))
        fault.put_into(root)
        outcome, by = run_tests(root, fault.tests)
    words = {"failed": "caught", "passed": "survived"}
    return Verdict(fault.name, fault.file, words.get(outcome, outcome), by, round(time.monotonic() - began, 1))


def judge_without_fault(verdicts: Sequence[Verdict]) -> Verdict:
    """Run the tests that caught something on the code as it is: one that fails there has caught nothing."""
    began = time.monotonic()
    caught = [one.by.partition("::") for one in verdicts if one.outcome == "caught"]
    tests = [f"{module.replace('.', '/')}.py::{test}" for module, _, test in dict.fromkeys(caught)]
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        outcome, by = run_tests(copied_tree(Path(folder)), tests, stops=False)
    return Verdict(WITHOUT, "", outcome, by, round(time.monotonic() - began, 1))


def read_record(path: Path) -> dict[str, Verdict]:
    """Verdicts by name, of a file of JSON lines; the last line of a run that was stopped may be cut."""
    found = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ():
        verdict = Verdict(**json.loads(line))
        found[verdict.name] = verdict
    return found


def append(verdict: Verdict, path: Path) -> None:
    """Put one verdict at the end of a record.

    Args:
        verdict: to keep.
        path: of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(verdict)) + "\n")
