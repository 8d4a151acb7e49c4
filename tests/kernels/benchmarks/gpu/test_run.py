"""The run on a GPU by a made clock: its budget, its order, and what becomes of cells that do not go well."""

from __future__ import annotations

import json
import math

import pytest

from attnres_compile.report.comparison import MeasureError
from kernels.benchmarks.gpu import record as gpu_record
from kernels.benchmarks.gpu.budget import RESERVE, Estimates
from kernels.benchmarks.gpu.plan import BLOCKS, MODEL, WARM_UPS
from kernels.benchmarks.gpu.run import UNTIMED_SHARE
from tests.kernels.benchmarks.gpu.made import ENVIRONMENT, Crew, check, made


def test_a_cell_that_does_not_fit_is_not_begun_and_a_smaller_one_behind_it_is():
    crew = Crew(minutes=1)
    crew.run.go([made("one", seconds=20), made("long", MODEL, seconds=50), made("two", seconds=20), made("three")], 1)
    assert crew.names == ["one", "two", "three"]
    assert "long" not in crew.run.record.cells
    assert "no time was left for 1 model; the first of them: long" in crew.lines[-1]
    assert crew.run.budget.spent <= 60


@pytest.mark.parametrize("takes", [7, 13, 25, math.inf])
def test_the_budget_is_kept_however_long_cells_take(takes):
    crew = Crew(minutes=2)
    crew.run.go([made(f"cell {number}", seconds=10, takes=takes) for number in range(40)], 1)
    assert crew.run.budget.spent <= 120
    assert crew.run.budget.spent >= 0.95 * 120 - RESERVE - 2 * 10, "what fits is begun"
    assert all(worker.dead for worker in crew.started), "no worker outlives the run"


def test_a_cell_past_its_limit_is_killed_and_the_next_has_a_new_worker():
    crew = Crew(minutes=5)
    crew.run.go([made("one"), made("hangs", takes=math.inf), made("two"), made("three")], 1)
    assert crew.statuses() == {"one": "measured", "hangs": "killed", "two": "measured", "three": "measured"}
    assert crew.run.record.cells["hangs"]["seconds"] == pytest.approx(30, abs=0.2)
    assert len(crew.started) == 2, "one before it, and one for all behind it"


def test_a_cell_that_the_budget_ends_is_no_fault():
    crew = Crew(minutes=1)
    crew.run.go([made("one", seconds=30), made("two", seconds=20, takes=55, limit=60)], 1)
    assert crew.statuses()["two"] == "cut"
    assert crew.run.record.faults() == {}


@pytest.mark.parametrize("status", ["failed", "wrong"])
def test_a_cell_that_fails_loses_its_worker_and_one_that_is_wrong_does_not(status):
    crew = Crew(minutes=5)
    bad = made("bad", answer={"status": status, "reason": "numbers"})
    crew.run.go([made("one"), bad, made("two")], 1)
    assert crew.statuses() == {"one": "measured", "bad": status, "two": "measured"}
    assert len(crew.started) == (2 if status == "failed" else 1)
    assert any("numbers" in line for line in crew.lines)


def test_what_is_not_timed_runs_beside_each_other_and_first_and_what_is_timed_alone():
    crew = Crew(minutes=5)
    cells = [check(f"check {number}") for number in range(4)]
    cells += [made("warm-up of block", WARM_UPS), made("block"), made("other")]
    crew.run.go(cells, 3)
    assert crew.names == ["check 0", "check 1", "check 2", "check 3", "warm-up of block", "block", "other"]
    times = dict(crew.begun)
    assert times["check 0"] == times["check 2"] < times["check 3"]
    assert times["block"] >= times["warm-up of block"] + 10
    assert times["other"] >= times["block"] + 10
    assert "warm-up of block" not in crew.run.record.cells


def test_cells_beside_each_other_fit_into_the_memory():
    crew = Crew(minutes=5)
    crew.run.go([check(f"check {number}", gigabytes=50) for number in range(4)], 4)
    times = [time for _, time in crew.begun]
    assert times[0] == times[1] < times[2] == times[3]


def test_checks_and_warm_ups_leave_the_rest_of_the_budget_to_what_is_timed():
    crew = Crew(minutes=10)
    cells = [check(f"check {number}", seconds=10, takes=math.inf, limit=500) for number in range(2)]
    crew.run.go([*cells, made("block")], 2)
    assert dict(crew.begun)["block"] == pytest.approx(UNTIMED_SHARE * 600, abs=1)


def test_estimates_follow_what_cells_of_the_class_took_within_bounds():
    estimates = Estimates([(BLOCKS, 2.0), (BLOCKS, 3.0)])
    assert estimates.of(made("block", seconds=10, limit=100)) == 25
    assert estimates.of(made("model", MODEL, seconds=10)) == 10
    estimates.learn(made("block", seconds=10), 1000)
    estimates.learn(made("block", seconds=10), 1000)
    assert estimates.of(made("block", seconds=10, limit=100)) == 40
    assert estimates.of(made("block", seconds=10, limit=15)) == 15


def test_the_record_is_whole_after_every_cell_and_the_next_run_begins_where_it_ends(tmp_path, monkeypatch):
    path, kept = tmp_path / "run.json", []
    honest = gpu_record.keep_record
    monkeypatch.setattr(
        gpu_record,
        "keep_record",
        lambda *args: honest(*args) or kept.append(list(json.loads(path.read_text())["cells"])),
    )
    cells = [made(f"cell {number}") for number in range(6)]
    cells[1] = made("cell 1", answer={"status": "failed", "reason": "no luck"})
    first = Crew(0.6, path)
    first.run.go(cells, 1)
    assert kept == [["cell 0"], ["cell 0", "cell 1"], ["cell 0", "cell 1", "cell 2"]]
    second = Crew(5, path)
    second.run.go([*cells, made("new")], 1)
    assert second.names == ["cell 3", "cell 4", "cell 5", "new", "cell 1"], "what failed before comes last"
    assert second.run.record.cells["cell 0"]["status"] == "measured"
    third = Crew(5, path)
    third.run.go(cells[2:], 1)
    assert third.names == []


def test_what_failed_is_not_forgotten_if_the_next_run_has_no_time_for_it(tmp_path):
    path = tmp_path / "run.json"
    Crew(5, path).run.go([made("bad", answer={"status": "failed", "reason": "no luck"})], 1)
    again = Crew(0.5, path)
    again.run.go([made("bad", takes=29, limit=100)], 1)
    assert again.statuses() == {"bad": "failed"}


@pytest.mark.parametrize(
    "changed",
    [
        {"source": "another"},
        {"environment": ENVIRONMENT | {"device": "Another GPU"}},
        {"environment": ENVIRONMENT | {"versions": {"torch": "2.12", "triton": "3.6"}}},
    ],
)
def test_cells_of_other_code_versions_or_devices_do_not_stand_and_are_not_lost(tmp_path, changed):
    path = tmp_path / "run.json"
    Crew(5, path).run.go([made("one")], 1)
    kept = path.read_text()
    again = Crew(5, path, **changed)
    again.run.go([made("one")], 1)
    assert again.names == ["one"]
    (aside,) = tmp_path.glob("run-until-*.json")
    assert aside.read_text() == kept
    assert next(iter(changed)).removeprefix("environment") in again.run.record.note
    assert aside.name in again.run.record.note


def test_a_date_alone_changes_nothing(tmp_path):
    path = tmp_path / "run.json"
    Crew(5, path).run.go([made("one")], 1)
    again = Crew(5, path, environment=ENVIRONMENT | {"date": "2027-01-01T10:00:00+00:00"})
    again.run.go([made("one")], 1)
    assert again.names == []


def test_another_file_is_refused_and_stays(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"kind": "bench kernels"}')
    with pytest.raises(MeasureError, match="name another file"):
        Crew(5, path)
    assert path.read_text() == '{"kind": "bench kernels"}'
