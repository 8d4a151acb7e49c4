"""Every fault applies to the code as it is, and the runner tells a fault that is found from one that is not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.mutations.faults import ROOT, Fault, FaultError, all_faults
from tests.mutations.run import Verdict, append, read_record

FAULTS = all_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_fault_applies_to_the_code_once_and_still_parses(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text()
    faulty = fault.applied(text)
    assert faulty != text
    ast.parse(faulty)
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).exists(), test
        function = name.partition("[")[0]
        assert not function or f"def {function}(" in (ROOT / path).read_text(), test


def test_there_are_faults_in_every_area() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30
    areas = {"/".join(fault.file.split("/")[:3]) for fault in FAULTS}
    passes = {f"passes/attnres_passes/{name}" for name in ("analyses", "rewrite", "schedule", "lower", "ranks")}
    kernels = {f"kernels/attnres_kernels/{name}" for name in ("definition", "generation", "operators")}
    assert areas >= passes | kernels
    assert {fault.file.split("/")[1] for fault in FAULTS if fault.file.startswith("attnres_compile")} >= {
        "api",
        "compile",
        "model",
    }


def test_a_line_that_is_there_twice_is_refused() -> None:
    fault = Fault("twice", "one.py", "x = 1", "x = 2", ())
    assert fault.applied("x = 1\ny = 1\n") == "x = 2\ny = 1\n"
    for text in ("x = 1\nx = 1\n", "y = 1\n", "    x = 1\n"):
        with pytest.raises(FaultError, match="change it in faults"):
            fault.applied(text)


RUN = """
import sys
from pathlib import Path
from tests.mutations.run import run_tests
root = Path(sys.argv[1])
print([run_tests(root, tests) for tests in (["test_good.py"], ["test_good.py", "test_bad.py"], ["test_broken.py"])])
"""


def test_outcomes_of_a_run(tmp_path: Path) -> None:
    """Each in a fork, of a process that loads little."""
    for name, body in (
        ("good", "assert True"),
        ("bad", "assert False"),
        ("broken", "pass\nimport nothing_of_it"),
    ):
        (tmp_path / f"test_{name}.py").write_text(f"def test_it():\n    {body}\n")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout) == [("passed", ""), ("failed", "test_bad::test_it"), ("does not load", ANY)]


def test_a_record_that_was_cut_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    assert read_record(path) == {}
    verdicts = [Verdict(name, "a.py", "caught", "t", 1.0) for name in ("one", "two")]
    for verdict in verdicts:
        append(verdict, path)
    with path.open("a") as file:
        file.write('{"name": "thr')
    assert list(read_record(path).values()) == verdicts
