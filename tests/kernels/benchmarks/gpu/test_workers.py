"""Workers: what they answer of kernels that are right, wrong or raise, and what is left of one that is killed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from kernels.benchmarks.gpu import __main__ as command
from kernels.benchmarks.gpu import rehearsal, surroundings, work
from kernels.benchmarks.gpu.plan import JSON
from kernels.benchmarks.gpu.processes import Worker
from kernels.benchmarks.gpu.rehearsal import MadeClock, RehearsedWorker, Stage

SHAPE = {"level": "op", "tokens": 2, "width": 8, "sources": 2, "reads": 1, "dtype": "bfloat16"}
CHECK = {"do": "check", "shape": SHAPE, "direction": "training", "device": "cpu"}
JOB = {name: [value] for name, value in SHAPE.items()} | {"direction": ["forward"], "device": "cpu", "rounds": 1}
KERNELS = {"do": "kernels", "job": JOB | {"arms": ["kernels"], "peers": False, "copied": 4096}}


@pytest.fixture
def worker(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    one = Worker(command.ROOT, environment, tmp_path / "log")
    yield one
    one.kill()


def answer_of(worker: Worker) -> dict:
    end = time.monotonic() + 300
    while (found := worker.answer()) is None:
        assert time.monotonic() < end, "no answer"
        time.sleep(0.01)
    return found


def run_python(code: str) -> dict:
    return {"do": "command", "words": ["-c", code]}


def test_a_worker_goes_on_after_a_command_and_is_gone_with_all_that_it_started_once_it_is_killed(worker, tmp_path):
    worker.begin(run_python("print('done')"))
    assert answer_of(worker) == {"status": "passed", "reason": "", "output": ["done"]}
    worker.begin(run_python("import sys; print('first\\nlast'); sys.exit(3)"))
    assert answer_of(worker) == {"status": "failed", "reason": "exit code 3: first / last"}
    pid = tmp_path / "pid"
    code = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    worker.begin(run_python(code))
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    assert worker.answer() is None
    worker.kill()
    assert worker.dead
    assert answer_of(worker)["reason"].startswith("the worker ended with signal 9")
    end = time.monotonic() + 10
    while is_running(int(pid.read_text())):
        assert time.monotonic() < end, "what the worker started outlived it"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_worker_that_does_not_know_a_word_says_so(worker):
    worker.begin({"do": "sing"})
    assert answer_of(worker) == {"status": "failed", "reason": "KeyError: 'sing'"}


def test_the_record_of_a_command_is_in_its_answer():
    code = "import sys, json; json.dump({'cells': [{'workload': 'prefill'}]}, open(sys.argv[1], 'w'))"
    found = work.do({"do": "command", "words": ["-c", code, JSON]})
    assert (found["status"], found["record"]) == ("measured", {"cells": [{"workload": "prefill"}]})
    missing = code.replace("'prefill'", "'a', 'missing': 'out of memory'")
    found = work.do({"do": "command", "words": ["-c", missing, JSON]})
    assert (found["status"], found["reason"]) == ("failed", "a: out of memory")


@pytest.mark.interpreter
def test_a_check_passes_kernels_that_are_right_and_no_others():
    found = work.do(CHECK)
    assert (found["status"], found["reason"]) == ("passed", "")
    ran = {name: one for name, one in found["arms"].items() if "errors" in one}
    assert {"kernels, direct", "kernels, two_phase", "kernels, own logits"} <= set(ran)
    assert all(one["same_bits"] and max(one["errors"].values()) < 3e-2 for one in ran.values())
    wrong = work.do(CHECK | {"fault": rehearsal.PERTURBS})
    assert wrong["status"] == "wrong"
    assert "kernels, direct: largest relative error of outputs 0.2" in wrong["reason"]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        work.do(CHECK | {"fault": rehearsal.RAISES})


@pytest.mark.interpreter
def test_a_check_finds_two_runs_that_differ_by_less_than_any_tolerance(monkeypatch):
    calls = []

    def change(outputs):
        calls.append(1)
        return [output * (1 + 2**-7 * (len(calls) % 2)) for output in outputs]

    monkeypatch.setitem(rehearsal._FAULTS, rehearsal.PERTURBS, change)
    found = work.do(CHECK | {"direction": "forward", "fault": rehearsal.PERTURBS})
    assert found["status"] == "wrong"
    assert "two runs, different bits" in found["reason"]
    assert "error" not in found["reason"]


def test_a_check_without_kernels_does_not_pass(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    found = work.do(CHECK)
    assert found["status"] == "failed"
    assert found["reason"].startswith("no kernel ran: Triton runs on cpu in its interpreter only")


@pytest.mark.interpreter
def test_a_timed_cell_keeps_its_record_whether_it_is_right_or_not():
    found = work.do(KERNELS)
    assert (found["status"], found["reason"]) == ("measured", "")
    assert found["record"]["cells"][0]["copy"]["bytes"] == 2 * 4096
    wrong = work.do(KERNELS | {"fault": rehearsal.PERTURBS})
    assert (wrong["status"], len(wrong["record"]["cells"])) == ("wrong", 1)
    raised = work.do(KERNELS | {"fault": rehearsal.RAISES})
    assert raised["status"] == "failed"
    assert "kernels, direct: RuntimeError: CUDA error" in raised["reason"]
    json.dumps(found)
    assert work.do(KERNELS | {"do": "warm-up"}) == {"status": "passed", "reason": ""}


def test_a_rehearsed_cell_is_really_done_when_it_is_time_and_one_that_hangs_is_really_killed():
    class Fast:
        def __init__(self):
            self.dead, self.begun = False, []
            real.append(self)

        def begin(self, given):
            self.begun.append(given["takes"])

        def answer(self):
            return {"status": "passed"}

        def kill(self):
            self.dead = True

    real: list[Fast] = []
    stage = Stage(MadeClock(), Fast)
    one, other = RehearsedWorker(stage), RehearsedWorker(stage)
    one.begin({"takes": 5})
    other.begin({"takes": float("inf")})
    assert (one.answer(), other.answer()) == (None, None)
    stage.clock.sleep(5)
    assert one.answer() == {"status": "passed"}
    stage.clock.sleep(1e9)
    assert other.answer() is None
    assert [worker.begun for worker in real] == [[float("inf")], [5]]
    other.kill()
    assert [worker.dead for worker in real] == [True, False]
    one.begin({"takes": 0})
    assert one.answer() == {"status": "passed"}
    assert len(real) == 2, "one that has answered is used again"
    one.kill()
    assert real[1].dead


def wheel(folder: Path, name: str, version: str) -> None:
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_wheels_are_installed_into_a_folder_of_the_run_and_one_that_is_broken_is_named(tmp_path):
    (wheels := tmp_path / "wheels").mkdir()
    wheel(wheels, "fla_core", "9.9")
    (wheels / "liger_kernel-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    around = surroundings.make_surroundings(command.ROOT, tmp_path / "site", str(wheels))
    assert around.peers() == ["fla-core"]
    (note,) = around.notes
    assert note.startswith("liger_kernel-1.0-py3-none-any.whl was not installed: ")
    assert (tmp_path / "site" / "fla_core.py").exists()
    paths = around.environment(4, 16)["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(tmp_path / "site"), str(command.ROOT)]
    assert around.environment(4, 16)["TORCHINDUCTOR_COMPILE_THREADS"] == "4"


def test_without_an_install_the_project_makes_its_backend_known(tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings.importlib.metadata, "entry_points", lambda **_: ())
    around = surroundings.make_surroundings(command.ROOT, tmp_path, None)
    assert around.notes == ()
    (found,) = tmp_path.glob("*.dist-info")
    assert "attnres = attnres_compile.compile.backend:attnres" in (found / "entry_points.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is there")
def test_without_a_gpu_the_command_says_so_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--minutes", "1"]) == 1
    assert "there is no GPU to measure" in capsys.readouterr().err
    assert not (tmp_path / "gpu-run.json").exists()
