"""The command trains, keeps, resumes and refuses; tables say what the record says."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from attnres_compile.report.comparison import MeasureError
from kernels.benchmarks.training import __main__ as command
from kernels.benchmarks.training import grid, order, pictures, tables
from kernels.benchmarks.training import text as texts
from kernels.benchmarks.training.grid import BLOCKS, PLAIN, ROWS, Run, Size
from kernels.benchmarks.training.record import Record, read_lines
from kernels.benchmarks.training.training import rate_at

TINY = Size("2x16", layers=2, width=16, heads=2, inner=32, batch=2, length=16, steps=4)
DIGEST = "of no text"
RATES, SEEDS = (1e-3, 1e-2), (0, 1)


@pytest.fixture(autouse=True)
def tiny_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """One size, two rates, two seeds, and text that is made up."""
    monkeypatch.setitem(grid.SIZES, TINY.name, TINY)
    for name in set(grid.SIZES) - {TINY.name}:
        monkeypatch.delitem(grid.SIZES, name)
    for module in (order, tables):
        monkeypatch.setattr(module, "RATES", RATES)
        monkeypatch.setattr(module, "SEEDS", SEEDS)
    values = torch.arange(4000).square().remainder(251).to(torch.uint8)
    made_up = texts.Text(values, values.flip(0), DIGEST)
    monkeypatch.setattr(command, "text", lambda: made_up)


def run(folder: Path, *words: str) -> int:
    files = ["--record", str(folder / "runs.jsonl"), "--checkpoints", str(folder / "checkpoints")]
    return command.main([*words, *files, "--inner", "eager", "--quiet"])


def squeezed(table: str) -> str:
    """A table with one space where there are several."""
    return re.sub(" +", " ", table)


def keys(folder: Path) -> list[str]:
    return list(read_lines(folder / "runs.jsonl"))


def made(run: Run, loss: float | None, **more: Any) -> dict[str, Any]:
    """A line as if a run had been made."""
    return {
        "schema_version": 1,
        "kind": "training run",
        "key": run.key,
        "table": run.table,
        "size": run.size.name,
        "row": run.row,
        "rate": run.rate,
        "seed": run.seed,
        "settings": run.settings(DIGEST),
        "validation": loss,
        "processor_seconds": 3.0,
        "flops": 100.0 if run.options is None else 110.0,
        **more,
    }


def record_of(folder: Path, *lines: dict[str, Any]) -> Record:
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tables.kept(path)


class TestCommand:
    def test_an_interrupted_command_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Killed while it wrote a line, it makes that run and the others, and they are the same as without it."""
        monkeypatch.setattr(command.Command, "counted", lambda *_: 1.0)
        monkeypatch.setitem(grid.ROWS, PLAIN, dataclasses.replace(ROWS[PLAIN], is_recorded=False))
        words = ("quality", "--rows", PLAIN)
        assert run(tmp_path, *words, "--minutes", "0") == 0
        assert keys(tmp_path) == []
        assert run(tmp_path, *words) == 0
        path = tmp_path / "runs.jsonl"
        whole = read_lines(path)
        assert len(whole) == len(RATES) + len(SEEDS) - 1
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(lines[0] + lines[1][:40])
        capsys.readouterr()
        assert run(tmp_path, *words) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(whole) - 1
        again = read_lines(path)
        assert list(again) == list(whole)
        assert len({line["validation"] for line in whole.values()}) == len(whole)
        assert [line["validation"] for line in again.values()] == [line["validation"] for line in whole.values()]

    def test_a_row_is_trained_counted_recorded_and_shown(self, tmp_path: Path) -> None:
        plain = [*order.sweep(TINY, ROWS[PLAIN]), grid.quality_run(TINY, ROWS[PLAIN], RATES[0], 1)]
        lines = [made(one, 5.0 + one.rate, flops=1e5) for one in plain]
        (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert run(tmp_path, "quality", "--rows", BLOCKS) == 0
        kept = tables.kept(tmp_path / "runs.jsonl")
        assert f"| {BLOCKS} | 2 |" in squeezed(tables.outcome_table(kept))
        found = pictures.recordings(kept, TINY)
        assert list(found) == [BLOCKS]
        assert len(found[BLOCKS].writes) == 4
        assert all(write.gradient_norm > 0 for write in found[BLOCKS].writes)
        weights = found[BLOCKS].reads[-1].weights
        assert len(weights) == 5
        assert len(set(weights)) > 1  # those that were trained, not zero queries
        drawn = pictures.dynamics_figure(TINY, {PLAIN: found[BLOCKS], **found})
        lines = [[line.get_ydata().tolist() for line in axis.lines] for axis in drawn.axes[:3]]
        assert lines[0] == [list(found[BLOCKS].output_magnitude)] * 2
        assert drawn.axes[3].images[0].get_array().shape == (4, 5)
        flops = {line["flops"] for line in kept.lines.values() if line["row"] == BLOCKS}
        assert len(flops) == 1
        assert 1e5 < flops.pop() < 1e8

    def test_retrofits_begin_where_the_plain_model_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The converted model has the plain model's loss and logits, and a change of scale keeps what was learned."""
        monkeypatch.setattr(command.Command, "counted", lambda *_: 1.0)
        monkeypatch.setitem(grid.ROWS, PLAIN, dataclasses.replace(ROWS[PLAIN], is_recorded=False))
        monkeypatch.setattr(order, "SEEDS", (0,))
        monkeypatch.delitem(order.RETROFITS, "mean at once")
        assert run(tmp_path, "quality", "--rows", PLAIN) == 0
        assert run(tmp_path, "retrofit") == 0
        kept = tables.kept(tmp_path / "runs.jsonl")
        lines = {line["row"]: line for line in kept.lines.values() if line["table"] == "retrofit"}
        assert list(lines) == ["plain goes on", "sum, then mean"]
        best = min(line["validation"] for line in kept.lines.values() if line["table"] == "quality")
        for line in lines.values():
            assert line["begins_at"] == pytest.approx(best, abs=2e-6)
            assert line["validation"] != line["begins_at"]
        moved = lines["sum, then mean"]["moved"]
        assert moved["to sum"]["absolute"] < 1e-6
        assert 0 < moved["sum to mean"]["absolute"] < 0.05
        assert squeezed(tables.moved_table(kept)).count("2x16") == 2
        assert squeezed(tables.retrofit_table(kept)).count("2x16") == 2

    def test_the_plan_names_what_is_left(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(tmp_path, "plan") == 0
        out = capsys.readouterr().out
        assert "quality: 0 made, 4 that can be named are left" in out
        assert "retrofit: 0 made, 0 that can be named are left" in out

    def test_runs_under_other_settings_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = order.sweep(TINY, ROWS[PLAIN])[0]
        (tmp_path / "runs.jsonl").write_text(json.dumps(made(first, 3.0)) + "\n")
        assert run(tmp_path, "quality", "--minutes", "0") == 0
        monkeypatch.setitem(grid.SIZES, TINY.name, dataclasses.replace(TINY, steps=9))
        assert run(tmp_path, "quality", "--minutes", "0") == 1
        assert f"{first.key} under other settings: steps 4 there and 9 here" in capsys.readouterr().err
        assert keys(tmp_path) == [first.key]
        with pytest.raises(MeasureError, match="steps 4 there and 9 here"):
            tables.size_table(tables.kept(tmp_path / "runs.jsonl"))


class TestRecord:
    def test_what_is_no_run_is_refused(self, tmp_path: Path) -> None:
        line = made(order.sweep(TINY, ROWS[PLAIN])[0], 3.0)
        for wrong, what in (
            ([{**line, "schema_version": 0}], "another kind or schema"),
            ([{"key": "a"}], "is no run"),
            ([line, line], "once more"),
        ):
            with pytest.raises(MeasureError, match=what):
                record_of(tmp_path, *wrong)

    def test_runs_on_two_texts_make_no_table(self, tmp_path: Path) -> None:
        one, other = (made(run, 3.0) for run in order.sweep(TINY, ROWS[PLAIN]))
        other["settings"] = {**other["settings"], "text": "another"}
        with pytest.raises(MeasureError, match="2 texts"):
            record_of(tmp_path, one, other)


class TestOrder:
    def test_the_best_rate_of_a_sweep_is_taken_by_all_seeds(self, tmp_path: Path) -> None:
        plain, blocks = (order.sweep(TINY, ROWS[name]) for name in (PLAIN, BLOCKS))
        record = record_of(tmp_path, made(plain[0], None), made(plain[1], 3.0), made(blocks[0], 2.0))
        assert [run.rate for run in order.final_runs(TINY, ROWS[PLAIN], record.of)] == [RATES[1]] * 2
        assert order.final_runs(TINY, ROWS[BLOCKS], record.of) == []
        named = list(order.quality_runs([TINY], list(ROWS.values()), record.of))
        assert named[:5] == [*plain, order.final_runs(TINY, ROWS[PLAIN], record.of)[1], *blocks]
        assert {run.row for run in named[5:]} == {"plain, 1.25 x the steps"}
        longer = named[-1]
        assert (longer.steps, longer.rate) == (5, RATES[1])

    def test_every_seed_at_every_rate_comes_behind_the_first_tier(self, tmp_path: Path) -> None:
        size = dataclasses.replace(TINY, at_all_rates=True)
        losses = {run.key: made(run, 3.0) for row in (PLAIN, BLOCKS) for run in order.sweep(size, ROWS[row])}
        named = list(order.quality_runs([size], list(ROWS.values()), lambda run: losses.get(run.key)))
        first, rest = named[:8], [run for run in named[8:] if ROWS[run.row].tier == 1]
        assert {(run.row, run.seed, run.rate) for run in first} == {
            *((row, 0, rate) for row in (PLAIN, BLOCKS) for rate in RATES),
            *((row, 1, RATES[0]) for row in (PLAIN, BLOCKS)),
            *(("full", seed, RATES[0]) for seed in SEEDS),
        }
        assert {(run.row, run.seed, run.rate) for run in rest} == {
            *((row, 1, RATES[1]) for row in (PLAIN, BLOCKS, "full")),
            ("full", 0, RATES[1]),
        }
        assert len({run.key for run in named}) == len(named)
        assert {ROWS[run.row].tier for run in named[8 + len(rest) :]} == {2, 3}


def test_tables_say_what_the_pairs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences by seed, their mean and spread, and the exact probability of as large a mean by chance."""
    monkeypatch.setitem(grid.SIZES, TINY.name, dataclasses.replace(TINY, at_all_rates=True))
    lines = [made(run, 3.0 + run.seed + 10 * run.rate) for row in (PLAIN,) for run in order.sweep(TINY, ROWS[row])]
    lines.append(made(grid.quality_run(TINY, ROWS[PLAIN], RATES[0], 1), 4.0))
    lines += [made(run, 2.9) for run in order.sweep(TINY, ROWS[BLOCKS])]
    lines.append(made(grid.quality_run(TINY, ROWS[BLOCKS], RATES[0], 1), 3.99))
    record = record_of(tmp_path, *lines)
    (line,) = (one for one in squeezed(tables.outcome_table(record)).split("\n") if one.startswith(f"| {BLOCKS}"))
    assert line == f"| {BLOCKS} | 2 | -0.0600 | 0.0707 | -0.1100 to -0.0100 | 2 of 2 | 0.500 |"
    assert "too few pairs to tell: -0.0600 nats a byte in 2 pairs" in tables.verdict(record)
    assert "| 2x16 | plain | **3.5050 ± 0.7000 (2)** | 3.1000 (1) |" in squeezed(tables.rate_table(record))
    (line,) = (one for one in squeezed(tables.all_rates_table(record)).split("\n") if BLOCKS in one)
    assert line == f"| 2x16 | {BLOCKS} | 3 | -0.1067 | 0.0950 | -0.2000 to -0.0100 | 3 of 3 |"
    assert f"| 2x16 | {BLOCKS} | 0.001* | 128 | 1.100 | 1.000 | 2 | 3.4450 ± 0.7707 | -0.1100, -0.0100 |" in squeezed(
        tables.size_table(record)
    )


def test_probabilities_are_exact() -> None:
    assert tables.sign_flip_p([-1.0] * 9) == 2 / 512
    assert tables.sign_flip_p([-1.0, 1.0]) == 1.0
    assert tables.sign_flip_p([-3.0, 1.0, -2.0]) == 0.5


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 20, 1.0, 0.1) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 18)
    assert rates[2:] == sorted(rates[2:], reverse=True)


class TestText:
    def test_files_are_trained_or_validated_on_by_their_names(self) -> None:
        names = [f"stdlib/{number}.py" for number in range(1000)]
        assert 60 < sum(map(texts.is_validated_on, names)) < 140
        assert texts.is_validated_on(names[0]) == texts.is_validated_on(names[0])

    def test_docstrings_of_all_that_has_one(self) -> None:
        source = '"""A."""\nclass B:\n    """C."""\n    def d(self):\n        """E."""\n        return "F"\n'
        assert texts.docstrings(source) == "A.\n\nC.\n\nE.\n\n"

    def test_windows_of_validation_reach_from_end_to_end(self) -> None:
        (first, last) = texts.validation_batches(torch.arange(100).to(torch.uint8), rows=1, length=10, count=2)
        assert first.tolist() == [list(range(10))]
        assert last.tolist() == [list(range(90, 100))]
