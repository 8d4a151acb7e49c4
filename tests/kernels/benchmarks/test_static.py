"""Launches that are recorded without a GPU: what is taken down, the kept record, and its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnres_compile.report.comparison import MeasureError
from attnres_kernels.operators.phase_1 import GENERATED_PHASE_1
from kernels.benchmarks.against_peers.arms.arm import KERNELS, PEER
from kernels.benchmarks.against_peers.arms.own_logits import traffic_of_own_logits
from kernels.benchmarks.against_peers.traffic import row_of, traffic_of_kernels, units
from kernels.benchmarks.against_peers.work import Shape
from kernels.benchmarks.static.table import KIND, PER_TOKEN, static_table, total_bytes, verdict
from tests.kernels.benchmarks.kernel_jobs import benchmarks

RECORD = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "static.json"


@pytest.fixture(scope="module")
def found() -> dict:
    """In a process of its own: nothing is launched there, and this one may interpret kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    script = Path(__file__).with_name("toy_launches.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_launches_and_operations_are_taken_down_with_the_tensors_that_they_are_given(found):
    assert found["toy"] == [
        ["kernel", 128, 1],
        ["kernel", 64, 1],
        ["kernel", 128, 3],
        ["torch.stack", 256, 0],
        ["torch.new_zeros", 16, 0],
    ]


def agrees(arm: dict, part: str, counted: float, shape: Shape) -> bool:
    moved = sum(one["nbytes"] for one in arm[part] if one["choices"])
    return moved == pytest.approx(counted * shape.row_bytes, rel=0.03)


def test_what_our_kernels_are_given_is_what_their_bytes_are_counted_by(found):
    shape = Shape("op", 64, 512, 3, 1, "bfloat16")
    arms = {arm["name"]: arm for arm in found["ours"]["cells"][0]["arms"] if "forward" in arm}
    of_own, direct, shared = (
        traffic_of_own_logits(shape),
        *(traffic_of_kernels(shape, name, makes_logits=True) for name in ("direct", "two_phase")),
    )
    phase_1 = units(GENERATED_PHASE_1, sources=[row_of(shape)] * shape.sources, count=1)
    for name, forward, backward in (
        ("kernels, own logits", of_own.forward, of_own.backward),
        ("kernels, direct", direct.forward, direct.backward),
        # A compiled model makes phase 1 again in the backward; outside of a compiler its outputs are kept.
        ("kernels, two_phase", shared.forward, shared.backward - phase_1),
    ):
        assert agrees(arms[name], "forward", forward, shape), name
        assert agrees(arms[name], "backward", backward, shape), name


def test_the_kept_record_is_of_the_kernels_of_today_and_says_where_peers_move_less():
    record = json.loads(RECORD.read_text())
    assert record["command"].startswith("python -m kernels.benchmarks static --wheels ")
    for cell in record["cells"]:
        shape = Shape(*(cell[name] for name in ("level", "tokens", "width", "sources", "reads", "dtype")))
        arms = {arm["name"]: arm for arm in cell["arms"]}
        counted = traffic_of_own_logits(shape)
        assert agrees(arms["kernels, own logits"], "forward", counted.forward, shape)
        assert agrees(arms["kernels, own logits"], "backward", counted.backward, shape)
        assert {"fla-core triton", "liger-kernel"} <= {name for name, arm in arms.items() if "forward" in arm}
    assert [line.partition(",")[0] for line in verdict(record)] == [
        f"{part}: ours at or below the best peer in bytes on 9 of 9 shapes" for part in ("forward", "backward")
    ]


def made(ours: int, theirs: int) -> dict:
    def arm(name: str, kind: str, moved: int) -> dict:
        launches = [{"name": "one", "nbytes": moved, "choices": 1}, {"name": "torch.mul", "nbytes": 4, "choices": 0}]
        return {"name": name, "kind": kind, "forward": launches, "backward": launches}

    cell = {"width": 2048, "sources": 2, "row_bytes": 1000, "arms": []}
    cell["arms"] = [arm("kernels, own logits", KERNELS, ours), arm("peer", PEER, theirs)]
    cell["arms"].append({"name": "other", "kind": PEER, "missing": "takes widths that are powers of two"})
    environment = {"date": "2026-12-01", "versions": {"triton": "3.7.1", "fla-core": "0.6.0"}}
    return {"kind": KIND, "schema_version": 1, "environment": environment, "cells": [cell]}


def test_the_table_says_where_a_peer_moves_less(capsys, tmp_path):
    record = made(5000, 4000)
    table = static_table(record)
    assert "5.00  1+1  4 us" in table
    assert "other: takes widths that are powers of two" in table
    assert "forward: ours at or below the best peer in bytes on 0 of 1 shapes" in table
    assert "  d 2048, n 2: 1.250 times" in table
    assert verdict(made(4000, 4000))[0].startswith("forward: ours at or below the best peer in bytes on 1 of 1")
    assert " on 1 of 1" in verdict(made(round(4000 * (1 + PER_TOKEN / 2)), 4000))[0]
    assert total_bytes(record["cells"][0]["arms"][0], "forward") == 5004
    (path := tmp_path / "static.json").write_text(json.dumps(record))
    assert benchmarks(capsys, "show", str(path)) == (0, table + "\n", "")
    with pytest.raises(MeasureError, match="record again"):
        static_table(record | {"schema_version": 2})
