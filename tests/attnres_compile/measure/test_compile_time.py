"""Time to compile: fresh processes, in turn, with caches off; and what happens when one of them fails."""

from __future__ import annotations

import os

import pytest

from attnres_compile.measure import compile_time
from attnres_compile.measure.compile_time import (
    PREFILL,
    TRAINING,
    CompileJob,
    CompileTimes,
    compile_samples,
    measure_compile_time,
)
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.report.comparison import MeasureError

TINY = LoadOptions(seq=16)
MODEL = """
from tests.end_to_end.models import PreNorm, tokens

def make():
    return PreNorm(), (tokens(),), {}
"""


@pytest.fixture(autouse=True)
def _children_see_this_checkout(child_environment, monkeypatch):
    for name, value in child_environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("workload", [PREFILL, TRAINING])
def test_times_of_real_processes(workload, tmp_path):
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    job = CompileJob(
        f"{model}:make", LoadOptions(), workload, {"inner": "eager", "num_blocks": 2}, without_dropout=True
    )
    times = measure_compile_time(job, rounds=1)
    plain, attnres = compile_samples(times)
    assert plain.seconds[0] > 0.1
    assert attnres.seconds[0] > 0.1
    assert times["plain"][0].prepare == 0
    assert times["attnres"][0].prepare > 0.01


def test_arms_are_taken_in_turn(monkeypatch):
    order: list[str] = []

    def fake(job, arm):
        order.append(arm)
        return CompileTimes(len(order), 0.0)

    monkeypatch.setattr(compile_time, "_in_fresh_process", fake)
    times = measure_compile_time(CompileJob("gpt2-tiny", TINY, PREFILL, {}), rounds=3)
    assert order == ["plain", "attnres", "attnres", "plain", "plain", "attnres"]
    assert [one.compile for one in times["plain"]] == [1, 4, 5]


def test_every_process_has_its_own_empty_caches(monkeypatch):
    seen: list[dict[str, str]] = []

    def fake_run(command, env, **options):
        seen.append(env)
        assert not os.path.exists(env["TORCHINDUCTOR_CACHE_DIR"])
        raise KeyboardInterrupt

    monkeypatch.setattr(compile_time.subprocess, "run", fake_run)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measure_compile_time(CompileJob("gpt2-tiny", TINY, PREFILL, {}), rounds=1)
    assert {env["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] for env in seen} == {"1"}
    assert seen[0]["TORCHINDUCTOR_CACHE_DIR"] != seen[1]["TORCHINDUCTOR_CACHE_DIR"]


def test_a_failing_process_says_what_failed():
    job = CompileJob("gpt3", TINY, PREFILL, {})
    with pytest.raises(
        MeasureError,
        match=r"compiled the plain model failed \(.*'gpt3' is not a preset.*`attnres verify --traceback`",
    ):
        measure_compile_time(job, rounds=1)


def test_rounds_below_one():
    with pytest.raises(MeasureError, match="rounds is 0: pass at least 1"):
        measure_compile_time(CompileJob("gpt2-tiny", TINY, PREFILL, {}), rounds=0)
