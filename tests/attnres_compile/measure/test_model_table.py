"""The table of a record of `attnres bench model`, of today and of the first schema."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch

from attnres_compile.measure.compile_time import TRAINING
from attnres_compile.measure.model import DECODE
from attnres_compile.measure.model_table import model_table
from attnres_compile.report.comparison import MeasureError

transformers = pytest.importorskip("transformers")

RECORDS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def row_of(table: str, metric: str, schedule: str = "") -> list[str]:
    """The cells of the one row of ``metric`` and, if it is named, of ``schedule``."""
    rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines()]
    (row,) = [row for row in rows if row[0] == metric and schedule in ("", row[1])]
    return row


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
    table = model_table(gpu_record())
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
    table = model_table(record)
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
    table = model_table(record)
    for start, expected in rows.items():
        assert row_of(table, start)[1:] == ["auto", *expected]
    assert "peak memory" not in table
    assert "kernels launched" not in table


def test_the_schedule_of_an_old_record_is_named():
    record = json.loads((RECORDS / "gpt2-cpu-training.json").read_text())
    record["job"]["options"]["schedule"] = "direct"
    assert row_of(model_table(record), "training step [ms]")[1] == "direct"


@pytest.mark.parametrize("changed", [{"schema_version": 3}, {"schema_version": 0}, {"kind": "overhead"}])
def test_other_records_are_refused(changed):
    with pytest.raises(MeasureError, match="with schema_version 1 or 2: measure again"):
        model_table(gpu_record() | changed)
