"""`attnres bench model`: its cells, and mistakes in a job."""

from __future__ import annotations

import json
import re
import weakref
from types import SimpleNamespace

import pytest
import torch

from attnres_compile.cli import main as cli
from attnres_compile.measure import model as bench
from attnres_compile.measure import model_pair
from attnres_compile.measure.compile_time import PREFILL
from attnres_compile.measure.decode import GRAPH_MODE
from attnres_compile.measure.model import DECODE, ModelJob, measure_model
from attnres_compile.measure.model_table import model_table
from attnres_compile.measure.timing import compare
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from attnres_compile.report.comparison import Comparison, MeasureError
from attnres_kernels.errors import AttnResError
from attnres_passes.ir.config import AttnResConfig

transformers = pytest.importorskip("transformers")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = LoadOptions(batch=2, seq=12)
EAGER = {"inner": "eager", "num_blocks": 2}


def timed() -> Comparison:
    return compare(lambda: None, lambda: None, rounds=1, sample_seconds=0)


def row_of(table: str, metric: str, schedule: str = "") -> list[str]:
    """The cells of the one row of ``metric`` and, if it is named, of ``schedule``."""
    rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines()]
    (row,) = [row for row in rows if row[0] == metric and schedule in ("", row[1])]
    return row


def test_every_schedule_is_compiled_and_paired_with_a_plain_model_of_its_own(monkeypatch, gpt2):
    alive: list[weakref.ref] = []
    compiled: list[str] = []
    kept: list[int] = []
    original = model_pair.compile_pair

    def spy(pair, mode=None):
        assert not any(ref() for ref in alive), "an earlier pair is still alive"
        alive.extend(map(weakref.ref, (pair.plain, pair.attnres)))
        compiled.append(pair.plan.config.schedule)
        original(pair, mode)

    monkeypatch.setattr(bench, "compile_pair", spy)
    names = ("auto", "naive", "two_phase")
    job = ModelJob(gpt2, TINY, (PREFILL,), rounds=2, schedules=names, options=EAGER)
    record = measure_model(job, keep=lambda partial: kept.append(len(partial["cells"])))
    assert tuple(compiled) == names
    assert kept == [1, 2, 3]
    assert [(cell["workload"], cell["schedule"]) for cell in record["cells"]] == [(PREFILL, name) for name in names]
    for cell in record["cells"]:
        samples = cell["latency"]["samples"]
        assert set(samples) == {"plain", "attnres"}
        assert all(len(seconds) == 2 for seconds in samples.values())
        assert "no allocations on cpu" in cell["memory"]["missing"]
        assert "does not see the kernels" in cell["launches"]["missing"]
    assert record["plan"] == [{"stream": "transformer.h", "writes": 4, "reads": 5, "blocks": 2}]
    table = model_table(json.loads(json.dumps(record)))
    assert [line.split()[2] for line in table.splitlines() if line.startswith("prefill [ms]")] == list(names)
    assert "4 writes in 2 blocks" in table
    assert row_of(table, "peak memory") == ["peak memory", "all", "n/a", "n/a", "n/a"]
    assert "n/a kernels launched: the profiler does not see the kernels" in table
    assert "[MiB]" not in table, "no rows of zeros or blanks where nothing is counted"


def test_decoding_is_a_workload_with_its_cache(gpt2):
    """Training is one in test_cli.py."""
    record = measure_model(ModelJob(gpt2, TINY, (DECODE,), rounds=1, options=EAGER))
    (decode,) = record["cells"]
    assert decode["workload"] == DECODE
    assert decode["cuda_graphs"] is False
    # 2 layers, keys and values, batch 2, 4 heads, 12 tokens, 8 wide, fp32.
    assert decode["cache"] == {"tokens": 11, "bytes": 2 * 2 * 2 * 4 * 12 * 8 * 4}
    table = model_table(record)
    assert len(row_of(table, "decode step [ms]")) == 6
    assert "decode step: one token a row against 11 in a static cache" in table
    assert "without CUDA graphs" in table


def test_a_model_that_cannot_be_decoded_is_one_line_and_no_failure(capsys, tmp_path):
    file = tmp_path / "record.json"
    words = ("bench", "model", "vit-tiny", "--workload", "decode", "--schedules", "auto", "naive", "--inner", "eager")
    assert cli.main([*words, "--json", str(file)]) == 0
    table = capsys.readouterr().out
    reason = "ViTForImageClassification is no causal language model of transformers"
    assert row_of(table, "decode step [ms]", "auto") == ["decode step [ms]", "auto", "n/a", "n/a", "n/a"]
    assert f"n/a decode step, auto: {reason}\nn/a decode step, naive: {reason}" in table
    assert [cell["missing"] for cell in json.loads(file.read_text())["cells"]] == [reason] * 2
    assert cli.main(["bench", "show", str(file)]) == 0
    assert capsys.readouterr().out == table


def test_a_cell_that_runs_out_of_memory_is_missing_and_the_next_is_measured(monkeypatch, gpt2):
    calls: list[object] = []

    def short_of_memory(job, calls_of_pair):
        calls.append(calls_of_pair)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore advice")
        return timed()

    monkeypatch.setattr(bench, "_compare", short_of_memory)
    record = measure_model(ModelJob(gpt2, TINY, (PREFILL,), schedules=("naive", "auto"), options=EAGER))
    first, second = record["cells"]
    assert first["missing"] == "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB."
    assert "latency" in second


def test_a_rewrite_that_does_not_decode_is_said_and_one_that_does_not_run_at_all_is_an_error(monkeypatch, gpt2):
    def refused(job, calls):
        raise AttnResError("a graph break cuts the stream: take that line out.\nmore")

    monkeypatch.setattr(bench, "_compare", refused)
    (cell,) = measure_model(ModelJob(gpt2, TINY, (DECODE,), options=EAGER))["cells"]
    assert cell["missing"] == "the rewritten model does not decode: a graph break cuts the stream: take that line out."
    with pytest.raises(AttnResError, match="a graph break cuts the stream"):
        measure_model(ModelJob(gpt2, TINY, (PREFILL,), options=EAGER))


def test_on_a_gpu_both_sides_decode_under_cuda_graphs(monkeypatch, gpt2):
    """Without one: what is asked of torch, and what is kept, with the runs left out."""
    modes: list[str | None] = []
    monkeypatch.setattr(bench, "compile_pair", lambda pair, mode: modes.append(mode))
    monkeypatch.setattr(bench, "_compare", lambda job, steps: timed())
    counted = {"kernels": 3, "copies": 1, "graphs": 1}
    monkeypatch.setattr(bench, "count_launches", lambda *args, **options: counted)
    job = SimpleNamespace(load=SimpleNamespace(torch_device=lambda: CUDA))
    loaded = load_model(gpt2, TINY)
    pair = model_pair.prepared_pair(loaded.model, (), loaded.kwargs, AttnResConfig(num_blocks=2))
    cell = bench._decode(job, loaded, pair)
    assert modes == [GRAPH_MODE] == ["reduce-overhead"]
    assert cell["cuda_graphs"] is True
    assert "a CUDA graph allocates" in cell["memory"]["missing"]
    assert cell["launches"] == {"plain": counted, "attnres": counted, "ratio": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedules": ("fast",)}, "schedule 'fast' is not known: pass one of auto, direct, two_phase, naive"),
        ({"schedules": ("auto", "auto")}, "schedule 'auto' is named twice"),
        ({"schedules": ()}, "no schedule is named"),
        ({"workloads": ("forward",)}, "workload 'forward' is not known: pass one of prefill, training step, decode"),
        ({"options": {"schedule": "naive"}}, "name it in schedules"),
        ({"rounds": 0}, "rounds is 0"),
        ({"compile_rounds": -1}, "compile_rounds is -1"),
    ],
)
def test_a_job_that_makes_no_sense(options, message):
    with pytest.raises(MeasureError, match=message):
        ModelJob("gpt2-tiny", TINY, **options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--schedules", "auto", "auto"), "schedule 'auto' is named twice: pass each once"),
        (("--schedule", "auto", "--schedules", "naive"), "--schedule and --schedules are both given"),
        (("--workload", "forward", "prefill"), "workload 'prefill' is named twice"),
        (("--workload", "decode", "--seq", "1000"), "seq 1000 is longer than the model allows"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, message):
    assert cli.main(["bench", "model", "gpt2-tiny", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("attnres: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_an_unknown_schedule_or_workload_names_the_known_ones(capsys):
    for words in (["--schedules", "fast"], ["--workload", "generate"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["bench", "model", "gpt2-tiny", *words])
        assert caught.value.code == 1
        assert "invalid choice" in capsys.readouterr().err
