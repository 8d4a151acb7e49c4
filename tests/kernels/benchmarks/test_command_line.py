"""``python -m kernels.benchmarks peers``: the command, its record and its table, in the interpreter."""

from __future__ import annotations

import json

import pytest
import torch

from attnres_compile.cli.output import json_text
from attnres_compile.report.comparison import MeasureError
from attnres_kernels.launch import tuning
from kernels.benchmarks.against_peers import cell as kernel_cell
from kernels.benchmarks.against_peers import run as kernel_run
from kernels.benchmarks.against_peers.arms.arm import TORCH
from kernels.benchmarks.against_peers.run import measure_kernels
from kernels.benchmarks.against_peers.table import kernels_table
from kernels.benchmarks.against_peers.work import FORWARD, OP, TRAINING
from tests.kernels.benchmarks.kernel_jobs import arm_of, benchmarks, small

OPTIONS = ("--device", "cpu", "--width", "24", "--sources", "3", "--reads", "3", "--tokens", "5", "--rounds", "2")


@pytest.mark.interpreter
def test_the_command_keeps_a_record_whose_table_comes_from_it_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("peers", *OPTIONS, "--dtype", "float32", "--level", "block", "--arms", "naive", "liger", "auto")
    words += ("direct", "--json", "kernels.json")
    code, table, _ = benchmarks(capsys, *words)
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert code == 0
    assert (record["schema_version"], record["kind"]) == (1, "bench kernels")
    assert record["command"] == "python -m kernels.benchmarks " + " ".join(words)
    assert set(record["environment"]["versions"]) >= {"torch", "triton", "fla-core", "fast-attnres", "cuda"}
    assert record["job"]["inner"] == "eager"
    forward, training = record["cells"]
    assert (forward["direction"], training["direction"]) == (FORWARD, TRAINING)
    direct = next(arm for arm in training["arms"] if arm["name"] == "kernels, direct")
    assert [len(direct["seconds"][part]) for part in ("forward", "backward", "step")] == [2, 2, 2]
    copied = training["copy"]
    for part in ("forward", "backward", "step"):
        moved = direct["bytes"][part] / direct["median"][part]
        assert direct["fraction"][part] == pytest.approx(moved / copied["bytes_per_second"])
    assert direct["speed_over"][TORCH]["name"] == "naive, eager"
    ratios = sorted(
        slow / fast
        for slow, fast in zip(training["arms"][-2]["seconds"]["step"], direct["seconds"]["step"], strict=True)
    )
    assert direct["speed_over"][TORCH]["median"] == pytest.approx(sum(ratios) / 2)
    assert "liger-kernel: unsupported, not installed" in table
    assert "block, training: T 5, d 24, n 3, S 3, float32; copy " in table
    assert "geometric mean of the speed over the fastest torch code" in table
    assert benchmarks(capsys, "show", "kernels.json") == (0, table, "")
    markdown = kernels_table(record, "md")
    assert "| kernels, direct" in markdown


@pytest.mark.interpreter
def test_a_record_of_tuned_kernels_says_so_and_what_was_chosen(monkeypatch):
    monkeypatch.setattr(tuning, "measure", lambda call, quantiles: call() or [1.0] * len(quantiles))
    job = small(level=(OP,), direction=(FORWARD,), tokens=(2,), width=(300,), arms=("kernels",))
    untuned = measure_kernels(job)
    assert "tuned" not in untuned
    assert "autotune" not in untuned["environment"]
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    record = measure_kernels(job)
    assert record["environment"]["autotune"] is True
    assert {kernel["kernel"].partition("_n")[0] for kernel in record["tuned"]} >= {
        "logits_plain",
        "phase_1",
        "own_read",
    }
    assert all(kernel["key"]["width"] == 300 for kernel in record["tuned"])
    assert all(kernel["chosen"] == kernel["static"] for kernel in record["tuned"]), "of equals the first"
    json.dumps(record)
    assert kernels_table(record) != ""
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "on")
    with pytest.raises(tuning.TuningError, match="neither"):
        measure_kernels(job)


def test_the_record_is_kept_after_every_cell_and_a_budget_ends_the_run(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(kernel_run.time, "monotonic", lambda: now.__setitem__(0, now[0] + 10) or now[0])
    kept = []
    job = small(tokens=(2, 3, 4), direction=(FORWARD,), budget=25)
    record = measure_kernels(
        job, keep=lambda record: kept.append(len(record["cells"])), arms=lambda shape, device: [arm_of("one")]
    )
    assert kept == [1, 2, 3]
    assert ["skipped" in cell for cell in record["cells"]] == [False, True, True]
    assert "T 4, d 24, n 3, float32: the budget of 25 s was spent" in kernels_table(record)


def test_a_shape_without_room_is_skipped_and_the_next_is_measured(monkeypatch):
    honest = kernel_cell.make_inputs

    def make_inputs(shape, *rest):
        if shape.tokens == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
        return honest(shape, *rest)

    monkeypatch.setattr(kernel_cell, "make_inputs", make_inputs)
    job = small(tokens=(3, 4), direction=(FORWARD,))
    lacking, measured = measure_kernels(job, arms=lambda shape, device: [arm_of("one")])["cells"]
    assert lacking["skipped"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 TiB."
    assert measured["arms"][0]["status"] == "measured"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rounds", "0"), "rounds is 0: pass at least 1"),
        (("--sources", "1"), "sources is 1: pass at least 2"),
        (("--reads", "1"), "reads is 1: pass at least 2"),
        (("--tokens", "0"), "tokens is 0: pass at least 1"),
        (("--budget", "0"), "budget is 0.0: pass seconds above 0"),
        (("--arms", "flashy"), "no arm has 'flashy' in its name: pass a part of kernels, direct, "),
        (("--device", "cuda"), "no CUDA device is available on this machine: pass --device cpu"),
        (("--device", "toaster"), "torch knows no device 'toaster'"),
        (("--json", "missing/kernels.json"), "pass a path in a directory you can write to"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is there")
def test_bad_options_are_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = benchmarks(capsys, "peers", *OPTIONS, *words)
    assert (code, out) == (1, "")
    assert err.startswith("python -m kernels.benchmarks: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_record_read_back_tells_of_errors_that_json_has_no_number_for():
    broken = [arm_of("broken", change=lambda outputs: [float("nan") * x for x in outputs])]
    record = measure_kernels(small(direction=(TRAINING,)), arms=lambda shape, device: broken)
    again = json.loads(json_text(record))
    assert again["cells"][0]["arms"][0]["errors"]["outputs"] is None
    assert kernels_table(again) == kernels_table(record)
    (row,) = (line for line in kernels_table(again).splitlines() if line.startswith("broken  "))
    assert row.split() == ["broken", "wrong", "inf"]


def test_another_record_is_refused():
    with pytest.raises(MeasureError, match=r"no record of `python -m kernels\.benchmarks peers` with schema_version 1"):
        kernels_table({"kind": "bench kernels", "schema_version": 2})
