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
from kernels.benchmarks.static.code_table import SHOWN
from kernels.benchmarks.static.summary import PER_TOKEN, comparison, fewest_slots
from kernels.benchmarks.static.table import KIND, SCHEMA_VERSION, static_table, total_bytes, verdict
from kernels.benchmarks.static.time_model import Gpu, bounds
from tests.kernels.benchmarks.kernel_jobs import benchmarks

RECORD = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "static.json"


@pytest.fixture(scope="module")
def found() -> dict:
    """In a process of its own: nothing is launched there, and this one may interpret kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    script = Path(__file__).with_name("toy_launches.py")
    done = subprocess.run(
        [sys.executable, str(script), str(RECORD)], capture_output=True, text=True, env=environment, check=False
    )
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


def test_what_a_launch_compiles_is_what_triton_would_for_each_configuration_that_is_left(found):
    told = found["peer"]
    assert told["choices"] == 4, "two of them are pruned by the package"
    assert told["signature"] == {
        "many": ["*fp32", "*fp32"],
        "out": "*fp32",
        "count": "i32",
        "other": "constexpr",
        "size": "constexpr",
        "tile": "constexpr",
        "twice": "constexpr",
    }
    assert told["constants"] == {"other": 1, "size": 64, "tile": 128, "twice": True}
    assert told["divisible"] == [[0, 0], [0, 1]], "not the output, a view 8 bytes into a tensor, nor the number of rows"
    assert told["options"] == [[4, 3], [4, 2]]
    assert told["arguments"] == [True, True, True, 9 - 4]
    assert told["grid"] == [8, 2, 1]
    assert told["thinned"] == [2]


def test_a_loop_is_counted_by_its_argument_and_a_launch_by_its_grid(found):
    five, nine = (found["peer"]["facts"][count] for count in ("5", "9"))
    assert nine["loads_by_warp"] - five["loads_by_warp"] == 9 - 5
    # One stands behind the loop, and three stages issue up to two beyond its end under a predicate that is false.
    assert 5 + 1 <= five["loads_by_warp"] <= 5 + 1 + 2
    assert five["issue_slots"] == five["issued_by_warp"] * 4 * (8 * 2)
    assert five["instructions"] == nine["instructions"], "the same code"
    assert 0 < nine["issued_by_warp"] - five["issued_by_warp"] < nine["instructions"]
    assert five["undecided"] == 0
    assert five["resident_programs"] == 16, "warps are what limits a small program"
    assert (five["warps"], five["stages"], five["spilled_bytes"]) == (4, 3, 0)


def agrees(arm: dict, part: str, counted: float, shape: Shape) -> bool:
    moved = sum(one["nbytes"] for one in arm[part] if one["choices"])
    return moved == pytest.approx(counted * shape.row_bytes, rel=0.03)


def test_what_our_kernels_are_given_is_what_their_bytes_are_counted_by(found):
    shape = Shape("op", 8192, 4096, 8, 1, "bfloat16")
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
    assert verdict(record)[0].startswith("forward: ours at or below the best peer in bytes on 9 of 9 shapes")


def test_the_kept_record_has_the_code_of_todays_kernels_and_of_peers(found):
    record = json.loads(RECORD.read_text())
    if found["same_triton"]:
        again = "the kernels changed: record again, with --earlier docs/benchmarks/static.json (docs/gpu.md)"
        assert set(found["ours"]["code"]) <= set(record["code"]), again
    for facts in record["code"].values():
        assert facts["issue_slots"] > 0, facts
    (cell,) = (cell for cell in record["cells"] if (cell["width"], cell["sources"]) == SHOWN)
    for part in ("forward", "backward"):
        told = comparison(cell, part, record["code"])
        assert told is not None
        assert {told.ours.name, told.peer.name} <= {"kernels, own logits", "fla-core triton", "liger-kernel"}


def facts(slots: int, **others: object) -> dict:
    """Of a kernel that a multiprocessor holds two programs of."""
    told = {"kernel": "one", "chosen": {}, "grid": [64, 1, 1], "warps": 4, "stages": 3, "registers": 99}
    told |= {"spilled_bytes": 0, "shared_bytes": 16, "resident_programs": 2, "instructions": 100, "undecided": 0}
    return told | {"issued_by_warp": slots // 256, "waits": 3, "copies_ahead": False, "issue_slots": slots, **others}


def made(ours: int, theirs: int) -> dict:
    def arm(name: str, kind: str, moved: int, *code: str) -> dict:
        kernel = {"name": "one", "nbytes": moved, "choices": len(code), "code": list(code)}
        launches = [kernel, {"name": "torch.mul", "nbytes": 4, "choices": 0, "code": []}]
        return {"name": name, "kind": kind, "forward": launches, "backward": launches}

    cell = {"width": 4096, "sources": 8, "row_bytes": 1000, "tokens": 8, "arms": []}
    cell["arms"] = [arm("kernels, own logits", KERNELS, ours, "a"), arm("peer", PEER, theirs, "b", "c", "d")]
    cell["arms"].append({"name": "other", "kind": PEER, "missing": "takes widths that are powers of two"})
    environment = {"date": "2026-12-01", "versions": {"triton": "3.7.1", "fla-core": "0.6.0"}}
    code = {"a": facts(1000), "b": facts(1600), "c": facts(800), "d": facts(700, spilled_bytes=4)}
    record = {"kind": KIND, "schema_version": SCHEMA_VERSION, "environment": environment, "cells": [cell]}
    return record | {"code": code}


def test_the_table_says_where_a_peer_moves_less(capsys, tmp_path):
    record = made(5000, 4000)
    table = static_table(record)
    assert "5.00  1+1  4 us" in table
    assert "other: takes widths that are powers of two" in table
    assert "forward: ours at or below the best peer in bytes on 0 of 1 shapes" in table
    assert "  d 4096, n 8: 1.250 times" in table
    assert verdict(made(4000, 4000))[0].startswith("forward: ours at or below the best peer in bytes on 1 of 1")
    assert " on 1 of 1" in verdict(made(round(4000 * (1 + PER_TOKEN / 2)), 4000))[0]
    assert total_bytes(record["cells"][0]["arms"][0], "forward") == 5004
    (path := tmp_path / "static.json").write_text(json.dumps(record))
    assert benchmarks(capsys, "show", str(path)) == (0, table + "\n", "")
    with pytest.raises(MeasureError, match="record again"):
        static_table(record | {"schema_version": 1})


def test_the_summary_takes_the_configuration_with_fewest_slots_and_says_why_a_shape_is_missed():
    record = made(4000, 4000)
    assert fewest_slots([record["code"][x] for x in "bcd"]) == record["code"]["c"], "the one that spills is none"
    assert fewest_slots([{"error": "it does not compile"}]) is None
    table = static_table(record)
    assert "0 of 2 reached" in table
    assert "  forward, d 4096, n 8: instructions per byte 1.25x: one 3 x 4 warps x 64, 2 resident" in table
    assert "100..200" in table, "slots a row with the best and with the worst configuration"
    record["code"]["a"]["issue_slots"] = 950
    assert "2 of 2 reached" in static_table(record)
    del record["code"]["c"], record["code"]["b"]
    record["code"] |= {"c": {"error": "x"}, "b": {"error": "x"}, "d": {"error": "x"}}
    assert "reached" not in static_table(record), "there is no peer left"
    more = made(4100, 4000)
    more["code"]["a"]["issue_slots"] = 800
    assert "  backward, d 4096, n 8: bytes 1.025x, 0.1% of ours in torch" in static_table(more)


def test_the_model_is_the_longest_of_bytes_instructions_and_programs_one_behind_the_other():
    gpu = Gpu("toy", bandwidth=1e3, multiprocessors=4, clock=100.0, issues=2, latency=0.5)
    of_bytes, of_torch = bounds(10_000, facts(800), gpu), bounds(10_000, None, gpu)
    assert (of_bytes.memory, of_bytes.issue, of_torch.seconds) == (10.0, 1.0, 10.0)
    # 64 programs on 4 multiprocessors, two at once: 8 rounds of 3 waits and a 16th of (10 + 1) seconds each.
    assert of_bytes.residency == pytest.approx(8 * (1.5 + 11 / 16))
    assert (of_bytes.seconds, of_bytes.holds_up) == (of_bytes.residency, "residency")
    ahead = bounds(10_000, facts(800, copies_ahead=True), gpu)
    assert ahead.residency == pytest.approx(of_bytes.residency / 2)
    # One program on each multiprocessor has no other rounds, but its own rows, of which it copies the next.
    alone, pipelined = (
        bounds(10_000, facts(800, grid=[4, 1, 1], copies_ahead=x), gpu).residency for x in (False, True)
    )
    assert (alone, pipelined) == (pytest.approx(1.5 + 11), pytest.approx((1.5 + 11) / 2))
    assert bounds(10, facts(8_000, waits=0), gpu).holds_up == "issue"
    assert bounds(100_000, facts(8, waits=0), gpu).holds_up == "memory"
