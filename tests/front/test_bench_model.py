"""``attnres bench model``: cells of schedules and workloads, decoding, memory and launches, tables, old records."""

from __future__ import annotations

import copy
import json
import re
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import attnres_compile as ac
from attnres_compile.bench import arms as model_arms
from attnres_compile.bench import device_cost
from attnres_compile.bench import model as bench
from attnres_compile.bench.compile_time import PREFILL, TRAINING
from attnres_compile.bench.decode import GRAPH_MODE, DecodeError, check_decodable, decode_step
from attnres_compile.bench.device_cost import count_launches, launches_in, model_bytes, peak_memory
from attnres_compile.bench.measure import Comparison, MeasureError, compare
from attnres_compile.bench.model import DECODE, BenchJob, bench_model
from attnres_compile.bench.model_table import bench_table
from attnres_compile.cli import main as cli
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from attnres_kernels.errors import AttnResError
from attnres_passes.config import AttnResConfig

transformers = pytest.importorskip("transformers")

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = LoadOptions(batch=2, seq=12)
EAGER = {"inner": "eager", "num_blocks": 2}


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> str:
    """A configuration of two layers: compiling is what takes the time here."""
    file = tmp_path_factory.mktemp("gpt2") / "config.json"
    values = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 64, "n_positions": 16}
    file.write_text(json.dumps(values | {"n_layer": 2, "n_embd": 32, "n_head": 4}))
    return str(file)


def timed() -> Comparison:
    return compare(lambda: None, lambda: None, rounds=1, sample_seconds=0)


def row_of(table: str, metric: str, schedule: str = "") -> list[str]:
    """The cells of the one row of ``metric`` and, if it is named, of ``schedule``."""
    rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines()]
    (row,) = [row for row in rows if row[0] == metric and schedule in ("", row[1])]
    return row


# --- cells ---


def test_every_schedule_is_compiled_and_paired_with_a_plain_model_of_its_own(monkeypatch, gpt2):
    alive: list[weakref.ref] = []
    compiled: list[str] = []
    kept: list[int] = []
    original = model_arms.compile_arms

    def spy(arms, mode=None):
        assert not any(ref() for ref in alive), "an earlier pair is still alive"
        alive.extend(map(weakref.ref, (arms.plain, arms.attnres)))
        compiled.append(arms.plan.config.schedule)
        original(arms, mode)

    monkeypatch.setattr(model_arms, "compile_arms", spy)
    names = ("auto", "naive", "two_phase")
    job = BenchJob(gpt2, TINY, (PREFILL,), rounds=2, schedules=names, options=EAGER)
    record = bench_model(job, keep=lambda partial: kept.append(len(partial["cells"])))
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
    table = bench_table(json.loads(json.dumps(record)))
    assert [line.split()[2] for line in table.splitlines() if line.startswith("prefill [ms]")] == list(names)
    assert "4 writes in 2 blocks" in table
    assert row_of(table, "peak memory") == ["peak memory", "all", "n/a", "n/a", "n/a"]
    assert "n/a kernels launched: the profiler does not see the kernels" in table
    assert "[MiB]" not in table, "no rows of zeros or blanks where nothing is counted"


def test_decoding_is_a_workload_with_its_cache(gpt2):
    """Training is one in test_cli.py."""
    record = bench_model(BenchJob(gpt2, TINY, (DECODE,), rounds=1, options=EAGER))
    (decode,) = record["cells"]
    assert decode["workload"] == DECODE
    assert decode["cuda_graphs"] is False
    # 2 layers, keys and values, batch 2, 4 heads, 12 tokens, 8 wide, fp32.
    assert decode["cache"] == {"tokens": 11, "bytes": 2 * 2 * 2 * 4 * 12 * 8 * 4}
    table = bench_table(record)
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

    def short_of_memory(job, arms):
        calls.append(arms)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore advice")
        return timed()

    monkeypatch.setattr(bench, "_compare", short_of_memory)
    record = bench_model(BenchJob(gpt2, TINY, (PREFILL,), schedules=("naive", "auto"), options=EAGER))
    first, second = record["cells"]
    assert first["missing"] == "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB."
    assert "latency" in second


def test_a_rewrite_that_does_not_decode_is_said_and_one_that_does_not_run_at_all_is_an_error(monkeypatch, gpt2):
    def refused(job, calls):
        raise AttnResError("a graph break cuts the stream: take that line out.\nmore")

    monkeypatch.setattr(bench, "_compare", refused)
    (cell,) = bench_model(BenchJob(gpt2, TINY, (DECODE,), options=EAGER))["cells"]
    assert cell["missing"] == "the rewritten model does not decode: a graph break cuts the stream: take that line out."
    with pytest.raises(AttnResError, match="a graph break cuts the stream"):
        bench_model(BenchJob(gpt2, TINY, (PREFILL,), options=EAGER))


def test_on_a_gpu_both_sides_decode_under_cuda_graphs(monkeypatch, gpt2):
    """Without one: what is asked of torch, and what is kept, with the runs left out."""
    modes: list[str | None] = []
    monkeypatch.setattr(model_arms, "compile_arms", lambda arms, mode: modes.append(mode))
    monkeypatch.setattr(bench, "_compare", lambda job, steps: timed())
    counted = {"kernels": 3, "copies": 1, "graphs": 1}
    monkeypatch.setattr(bench, "count_launches", lambda *args, **options: counted)
    job = SimpleNamespace(load=SimpleNamespace(torch_device=lambda: CUDA))
    loaded = load_model(gpt2, TINY)
    arms = model_arms.prepared_arms(loaded.model, (), loaded.kwargs, AttnResConfig(num_blocks=2))
    cell = bench._decode(job, loaded, arms)
    assert modes == [GRAPH_MODE] == ["reduce-overhead"]
    assert cell["cuda_graphs"] is True
    assert "a CUDA graph allocates" in cell["memory"]["missing"]
    assert cell["launches"] == {"plain": counted, "attnres": counted, "ratio": 1.0}


# --- decoding ---


def prepared(name: str, **options):
    """A prepared tiny model with its tokens; queries are zero."""
    loaded = load_model(name, TINY)
    plan = ac.prepare(loaded.model, (), loaded.kwargs, inner="eager", num_blocks=2, **options)
    return loaded.model, loaded.kwargs["input_ids"], plan


def last_logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, -1]


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_a_rewritten_step_gives_what_the_whole_sequence_gives(name):
    """Under random queries, in one graph that holds every read; and every call anew."""
    model, tokens, plan = prepared(name, schedule="two_phase")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.attnres.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    plain = last_logits(model, tokens)
    step = decode_step(model, tokens, graphs=False)
    model.compile(backend="attnres", fullgraph=True)
    first = step.run().logits[:, -1]
    assert ac.status(model).state == "rewritten"
    # All but the first read, which has one source.
    assert ac.status(model).reads == len(plan.streams[0].reads) - 1 == 8
    graphs = ac.status(model).graphs
    for _ in range(3):
        step()
    step.set_back()
    assert torch.equal(step.run().logits[:, -1], first)
    assert ac.status(model).graphs == graphs, "a later call compiled anew"
    torch.compiler.reset()
    whole = last_logits(model, tokens)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)
    assert (first - plain).abs().max() > 1e-2, "the queries change nothing, so nothing was tested"


def test_zero_queries_and_sums_decode_as_the_plain_model_without_a_cache():
    model, tokens, _ = prepared("llama-tiny", scale="sum")
    expected = last_logits(model_arms.plain_copy(model), tokens)
    step = decode_step(model, tokens, graphs=False)
    model.compile(backend="attnres")
    torch.testing.assert_close(step.run().logits[:, -1], expected, rtol=1e-4, atol=1e-5)
    assert ac.status(model).state == "rewritten"


def test_the_plain_step_decodes_too():
    loaded = load_model("gpt2-tiny", TINY)
    tokens = loaded.kwargs["input_ids"]
    step = decode_step(loaded.model, tokens, graphs=False)
    step()
    step.set_back()
    expected = last_logits(loaded.model, tokens)
    torch.testing.assert_close(step.run().logits[:, -1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "seq", "message"),
    [
        ("vit-tiny", None, "no causal language model of transformers"),
        ("t5-tiny", 8, "is an encoder-decoder"),
        ("gpt2-tiny", 1, "pass --seq 2 or more"),
    ],
)
def test_what_cannot_be_decoded_says_why(name, seq, message):
    loaded = load_model(name, LoadOptions(seq=seq))
    with pytest.raises(DecodeError, match=message):
        check_decodable(loaded.model, loaded.args, loaded.kwargs)


def test_other_inputs_than_tokens_cannot_be_decoded():
    loaded = load_model("gpt2-tiny", TINY)
    tokens = loaded.kwargs["input_ids"]
    with pytest.raises(DecodeError, match="is called with argument 0, labels, and"):
        check_decodable(loaded.model, (tokens,), {"labels": tokens})
    with pytest.raises(DecodeError, match="Linear is no causal language model"):
        check_decodable(nn.Linear(2, 2), (), {})


def test_a_cache_that_forgets_cannot_be_set_back():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MistralConfig(vocab_size=32, num_key_value_heads=1, sliding_window=4, **sizes)
    model = transformers.MistralForCausalLM(config)
    with pytest.raises(DecodeError, match="layers of the kind StaticSlidingWindowLayer"):
        decode_step(model, torch.zeros(1, 8, dtype=torch.long), graphs=False)


def test_a_model_that_fails_on_its_cache_says_how(monkeypatch):
    loaded = load_model("gpt2-tiny", TINY)
    loaded.model.transformer.h[0].attn.forward = lambda *args, **kwargs: 1 / 0
    with pytest.raises(DecodeError, match=r"does not fill a StaticCache \(ZeroDivisionError: division by zero\)"):
        decode_step(loaded.model, loaded.kwargs["input_ids"], graphs=False)


# --- memory and launches ---


def test_memory_is_what_the_model_holds_and_what_the_call_allocates_beyond(monkeypatch):
    """With a second model on the device, and gradients of an earlier step."""
    model = nn.Linear(8, 8)
    model(torch.ones(1, 8)).sum().backward()
    at_entry: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "memory_allocated", lambda device: at_entry.append(model.weight.grad is None) or 5000
    )
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: at_entry.append(True))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5300)
    assert peak_memory(lambda: None, model, 40, CUDA) == {"model": 288, "held": 40, "step": 300, "peak": 628}
    assert at_entry == [True, True], "gradients of an earlier step were counted as there before the call"


def test_a_tied_weight_is_held_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert model_bytes(model) == 128
    model[1].weight = model[0].weight
    assert model_bytes(model) == 64


def test_launches_are_counted_by_category():
    events = [
        *({"ph": "X", "cat": "kernel", "name": f"triton_{number}"} for number in range(5)),
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoD"},
        {"ph": "X", "cat": "gpu_memset", "name": "Memset"},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "## Call CompiledFxGraph"},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch"},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel"},
        {"ph": "f", "cat": "kernel", "name": "an arrow in the trace"},
    ]
    assert launches_in({"traceEvents": events}) == {"kernels": 5, "copies": 2, "graphs": 1}


@pytest.mark.parametrize("trace", [{}, {"traceEvents": [{"ph": "X", "cat": "cuda_runtime", "name": "cudaMalloc"}]}])
def test_no_kernel_seen_is_missing_and_not_0(trace):
    assert "may not be allowed to use CUPTI" in launches_in(trace)["missing"]


def test_launches_on_a_gpu_leave_out_what_comes_before_the_call(monkeypatch):
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))

    def traced(call, device):
        order.append("trace")
        call()
        return {"traceEvents": [{"ph": "X", "cat": "kernel", "name": "a"}]}

    monkeypatch.setattr(device_cost, "_traced", traced)
    counted = count_launches(lambda: order.append("call"), CUDA, before=lambda: order.append("before"))
    assert counted == {"kernels": 1, "copies": 0, "graphs": 0}
    assert order == ["before", "wait", "trace", "call"] * 2

    def failing(call, device):
        raise RuntimeError("CUPTI_ERROR_NOT_PERMITTED\nadvice")

    monkeypatch.setattr(device_cost, "_traced", failing)
    assert count_launches(lambda: None, CUDA) == {
        "missing": "the profiler failed (RuntimeError: CUPTI_ERROR_NOT_PERMITTED)"
    }


def test_a_trace_of_torchs_profiler_has_the_events_that_are_counted():
    """Of a CPU, whose operators stand where a GPU's kernels would."""
    x = torch.ones(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        x.add(x).mul(x)
    events = [event for event in device_cost.exported(profile)["traceEvents"] if event.get("cat") == "cpu_op"]
    assert [(event["ph"], event["name"]) for event in events] == [("X", "aten::add"), ("X", "aten::mul")]
    for event in events:
        event["cat"] = "kernel"
    assert launches_in({"traceEvents": events})["kernels"] == 2


# --- the table ---


def gpu_record() -> dict:
    """A record as of a GPU: two schedules, training and decode; naive ran out of memory in training."""
    mib = 1 << 20
    latency = {
        "unit": "s",
        "samples": {"plain": [0.1] * 6, "attnres": [0.101] * 6},
        "ratio": {"median": 1.01, "low": 1.005, "high": 1.015, "confidence": 0.97},
        "device": "NVIDIA H100 80GB HBM3",
        "threads": 8,
        "calls_per_sample": 1,
    }
    memory = {
        "plain": {"model": 2357 * mib, "held": 0, "step": 7643 * mib, "peak": 10000 * mib},
        "attnres": {"model": 2358 * mib, "held": 0, "step": 7842 * mib, "peak": 10200 * mib},
        "ratio": 1.02,
    }
    training_launches = {
        "plain": {"kernels": 1000, "copies": 2, "graphs": 0},
        "attnres": {"kernels": 1234, "copies": 2, "graphs": 0},
        "ratio": 1.234,
    }
    decode_launches = {
        "plain": {"kernels": 300, "copies": 0, "graphs": 1},
        "attnres": {"kernels": 360, "copies": 0, "graphs": 1},
        "ratio": 1.2,
    }
    training = {"workload": TRAINING, "schedule": "auto", "latency": latency, "memory": memory}
    decode = {
        "workload": DECODE,
        "cuda_graphs": True,
        "cache": {"tokens": 2047, "bytes": 256 * mib},
        "latency": latency,
        "memory": {"missing": "a CUDA graph allocates in a pool of its own"},
    }
    return {
        "schema_version": 2,
        "kind": "bench model",
        "command": "",
        "environment": {
            "date": "2026-11-23",
            "device": "NVIDIA H100 80GB HBM3",
            "threads": 8,
            "versions": {"torch": "2.11.0+cu128", "triton": "3.6.0", "fast": None},
        },
        "model": {"name": "llama-3.2-1b", "parameters": 1_235_814_400, "bytes": 2357 * mib},
        "job": {"load": {"dtype": "bfloat16"}},
        "inputs": {"input_ids": [4, 2048]},
        "plan": [{"stream": "layers", "writes": 32, "reads": 33, "blocks": 8}],
        "cells": [
            training | {"launches": training_launches},
            {"workload": TRAINING, "schedule": "naive", "missing": "out of memory: tried 20 GiB"},
            decode | {"schedule": "auto", "launches": decode_launches},
            decode | {"schedule": "naive", "launches": copy.deepcopy(decode_launches)},
        ],
    }


def test_table_of_a_gpu_record():
    table = bench_table(gpu_record())
    assert "1,235,814,400 parameters (2,357 MiB), input_ids [4, 2048], bfloat16; 32 writes in 8 blocks" in table
    assert "NVIDIA H100 80GB HBM3, 8 threads, torch 2.11.0+cu128, triton 3.6.0, 2026-11-23" in table
    step = row_of(table, "training step [ms]", "auto")
    assert step[1:] == ["auto", "100 (100 to 100)", "101 (101 to 101)", "1.010 [1.005, 1.015]", "6"]
    assert "n/a training step, naive: out of memory: tried 20 GiB" in table
    memory = row_of(table, "peak memory, training step [MiB]")
    assert memory == ["peak memory, training step [MiB]", "auto", "10,000.0", "10,200.0", "1.020"]
    assert "n/a peak memory, decode step: a CUDA graph allocates" in table
    assert "the model (plain 2,357.0 MiB, attnres 2,358.0 MiB) and the most that one call allocates" in table
    assert row_of(table, "kernels launched, training step", "auto")[1:] == ["auto", "1,000", "1,234", "1.234"]
    assert (
        table.count("decode step: one token a row against 2047 in a static cache of 256.0 MiB, under CUDA graphs") == 1
    )
    assert "NO CUDA GRAPH" not in table


def test_a_decode_that_ran_without_its_cuda_graph_is_said():
    record = gpu_record()
    record["cells"][3]["launches"]["attnres"]["graphs"] = 0
    table = bench_table(record)
    assert "decode step, naive: attnres launched NO CUDA GRAPH" in table
    assert table.count("NO CUDA GRAPH") == 1


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        (
            "gpt2-cpu.json",
            {
                "prefill [ms]": ["1163 (1146 to 1190)", "1182 (1170 to 1239)", "1.017 [1.012, 1.029]", "15"],
                "training step [ms]": ["4454 (3860 to 4944)", "4546 (4053 to 4969)", "≈ 1.053 [0.962, 1.120]", "15"],
                "prepare, prefill [s]": ["n/a", "3.121", "n/a", "2"],
            },
        ),
        (
            "gpt2-cpu-training.json",
            {"training step [ms]": ["3603 (3271 to 4298)", "3727 (3359 to 4466)", "≈ 1.017 [0.976, 1.038]", "31"]},
        ),
    ],
)
def test_records_of_the_first_schema_are_still_read(file, rows):
    record = json.loads((RECORDS / file).read_text())
    assert record["schema_version"] == 1
    table = bench_table(record)
    for start, expected in rows.items():
        assert row_of(table, start)[1:] == ["auto", *expected]
    assert "peak memory" not in table
    assert "kernels launched" not in table


def test_the_schedule_of_an_old_record_is_named():
    record = json.loads((RECORDS / "gpt2-cpu-training.json").read_text())
    record["job"]["options"]["schedule"] = "direct"
    assert row_of(bench_table(record), "training step [ms]")[1] == "direct"


@pytest.mark.parametrize("changed", [{"schema_version": 3}, {"schema_version": 0}, {"kind": "overhead"}])
def test_other_records_are_refused(changed):
    with pytest.raises(MeasureError, match="with schema_version 1 or 2: measure again"):
        bench_table(gpu_record() | changed)


# --- mistakes ---


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
        BenchJob("gpt2-tiny", TINY, **options)


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
