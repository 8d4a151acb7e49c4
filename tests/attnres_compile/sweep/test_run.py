"""Every model has a process, a limit of time and a line of its own; a sweep that was ended goes on where it was."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from attnres_compile.progress import Task, heard_by
from attnres_compile.sweep.record import Found, ModelRecord, Outcome, SweepFileError, read_records, write_records
from attnres_compile.sweep.run import Limits, left_to_do, sweep
from tests.attnres_compile.sweep.children import child

LIMITS = Limits(seconds=60, memory=1 << 40)


def test_each_model_runs_in_a_process_of_its_own() -> None:
    found = list(sweep("transformers", ["a", "b", "c"], 2, LIMITS, child))
    assert sorted(record.name for record in found) == ["a", "b", "c"]
    processes = {record.reason.split()[0] for record in found}
    assert len(processes) == 3
    assert str(os.getpid()) not in processes


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_limit_of_time_strikes_one_model_and_the_others_go_on(jobs: int) -> None:
    began = time.monotonic()
    found = {one.name: one for one in sweep("timm", ["sleeps", "a"], jobs, Limits(20, 1 << 40), child)}
    assert time.monotonic() - began < 300
    assert found["sleeps"].outcome is Outcome.LIMIT
    assert found["sleeps"].reason == "20 seconds"
    assert found["a"].outcome is Outcome.DECLINED


@pytest.mark.parametrize(("name", "outcome", "code"), [("dies", Outcome.FAULT, 7), ("killed", Outcome.LIMIT, -9)])
def test_a_process_that_ends_without_an_answer_says_how(name: str, outcome: Outcome, code: int) -> None:
    """The system kills one for want of memory; nothing else that ends it is a limit."""
    (record,) = sweep("transformers", [name], 1, LIMITS, child)
    assert record.outcome is outcome
    assert record.reason == f"its process ended with {code}"


def test_the_bar_counts_the_models_and_names_those_that_run() -> None:
    seen: list[tuple[int, str]] = []

    class Listener:
        def changed(self, tasks: list[Task]) -> None:
            seen.extend((one.done, one.stage) for one in tasks)

    with heard_by(Listener()):
        list(sweep("transformers", ["a", "b"], 1, LIMITS, child))
    assert {(0, "a"), (1, "b")} <= set(seen)


def line(name: str, outcome: Outcome = Outcome.DECLINED, library: str = "transformers") -> str:
    return ModelRecord(name, library, outcome).to_line() + "\n"


def test_a_sweep_that_was_killed_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    file.write_text(line("a") + line("b") + line("c")[:20])
    assert left_to_do(file, "transformers", ["a", "b", "c", "d"]) == ["c", "d"]
    assert file.read_text() == line("a") + line("b")
    with file.open("a") as appended:
        appended.write(line("c"))
    assert [record.name for record in read_records(file)] == ["a", "b", "c"]


def test_another_library_counts_for_itself(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    file.write_text(line("a", library="timm"))
    assert left_to_do(file, "transformers", ["a"]) == ["a"]
    assert left_to_do(file, "timm", ["a"]) == []


def test_outcomes_can_be_swept_again(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    file.write_text(line("a") + line("b", Outcome.LIMIT) + line("c", Outcome.LIMIT))
    assert left_to_do(file, "transformers", ["a", "b"], {Outcome.LIMIT}) == ["b"]
    assert file.read_text() == line("a") + line("c", Outcome.LIMIT)


def test_no_file_leaves_everything_to_do(tmp_path: Path) -> None:
    assert left_to_do(tmp_path / "none.jsonl", "transformers", ["a"]) == ["a"]


@pytest.mark.parametrize("text", ['{"name": "a"}\n', "nothing\n", "[]\n", '{"outcome": "new"}\n'])
def test_a_file_of_something_else_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(line("a") + text)
    with pytest.raises(SweepFileError, match=r"line 2 of .*other\.jsonl is no record"):
        left_to_do(file, "transformers", ["a"])
    assert file.read_text() == line("a") + text


def test_a_record_is_the_same_behind_its_line(tmp_path: Path) -> None:
    record = ModelRecord(
        "gpt2",
        "transformers",
        Outcome.REWRITTEN,
        how="widths / 8",
        layers={"m.Block": 2},
        streams=(Found("h", 96, 4, 5, 0, 0, {"modeling_gpt2.py:282": 2}),),
        declined=(("too_few_writes", 1, "activations.py:4"),),
        verified={"checks": 4, "skipped": 0, "max_error": 1e-7},
        seconds={"make": 0.5},
        versions={"torch": "2.13.0"},
    )
    write_records([record], tmp_path / "one.jsonl")
    assert read_records(tmp_path / "one.jsonl") == [record]
    assert record.writes == 4
