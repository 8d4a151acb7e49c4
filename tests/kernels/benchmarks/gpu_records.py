"""Records as of a GPU, made up: the form is that of the benchmarks, the numbers are given."""

from __future__ import annotations

import itertools

from attnres_compile.measure.compile_time import PREFILL, TRAINING
from attnres_compile.measure.model import DECODE
from kernels.benchmarks.against_peers.arms.arm import KERNELS, PEER, TORCH
from kernels.benchmarks.against_peers.arms.peers import NOT_INSTALLED
from kernels.benchmarks.against_peers.work import BLOCK, DIRECTIONS, LEVELS, OP
from kernels.benchmarks.against_peers.work import TRAINING as WITH_BACKWARD
from kernels.benchmarks.goals.project_goals import MODELS, SOURCES, TOKENS, WIDTHS

GPU, DATE = "Toy GPU", "2026-12-01T10:00:00+00:00"
GRID = tuple(itertools.product(TOKENS, WIDTHS, SOURCES))
BANDWIDTH = 4e12


def environment(date: str = DATE, device: str = GPU, interpreter: bool = False) -> dict:
    versions = {"torch": "2.13.0", "triton": "3.7.1"}
    return {"date": date, "device": device, "triton_interpreter": interpreter, "threads": 8, "versions": versions}


def arm(name: str, kind: str, seconds: dict[str, float], fraction: dict[str, float], note: str = "") -> dict:
    timed = {part: [value] * 6 for part, value in seconds.items()}
    shares = {"fraction": fraction, "ideal_fraction": {part: 0.9 * share for part, share in fraction.items()}}
    common = {"name": name, "kind": kind, "note": note, "status": "measured", "errors": {"outputs": 0.01}}
    moved = {part: round(fraction[part] * seconds[part] * BANDWIDTH) for part in seconds}
    return common | shares | {"bytes": moved, "seconds": timed, "median": dict(seconds), "lead": 2, "late": 0}


def cell(level: str, direction: str, shape: tuple[int, int, int], **changes: float) -> dict:
    """forward, backward: shares of the copy bandwidth of our arm; speed: over the one peer."""
    given = {"forward": 0.9, "backward": 0.8, "speed": 1.3} | changes
    parts = ["forward", "backward", "step"] if direction == WITH_BACKWARD else ["forward"]
    share = {"forward": given["forward"], "backward": given["backward"], "step": 0.85}
    seconds = dict.fromkeys(parts, 1e-3)
    ours = arm("kernels, direct", KERNELS, seconds, {part: share[part] for part in parts})
    over = {"name": "peer", "part": parts[-1], "median": given["speed"], "low": given["speed"], "high": 2.0}
    ours["speed_over"] = {PEER: over | {"confidence": 0.97}}
    slower = {part: given["speed"] * value for part, value in seconds.items()}
    others = [
        arm("peer", PEER, slower, dict.fromkeys(parts, 0.5)),
        arm("naive, inductor", TORCH, dict.fromkeys(parts, 4e-3), dict.fromkeys(parts, 0.2)),
        {"name": "away", "kind": PEER, "note": "", "status": "unsupported", "reason": NOT_INSTALLED},
        {"name": "kernels, auto", "kind": KERNELS, "note": "", "status": "same", "reason": "the same calls"},
    ]
    tokens, width, sources = shape
    place = {"level": level, "tokens": tokens, "width": width, "sources": sources, "reads": 6 if level == BLOCK else 1}
    copied = {"bytes": 2 << 30, "seconds": [5e-4] * 6, "bytes_per_second": BANDWIDTH}
    ideal = dict.fromkeys(parts, 1 << 30)
    measured = {"ideal_bytes": ideal, "copy": copied, "arms": [ours, *others], "spent_seconds": 9.0}
    return place | {"dtype": "bfloat16", "direction": direction} | measured


def kernel_record(cells: list[dict] | None = None, device: str = "cuda", **told) -> dict:
    """All shapes of the goals on both levels and in both directions, unless ``cells`` are given."""
    if cells is None:
        cells = [cell(*place) for place in itertools.product((BLOCK, OP), DIRECTIONS, GRID)]
    job = {"device": device, "level": list(LEVELS), "inner": "inductor"}
    common = {
        "schema_version": 1,
        "kind": "bench kernels",
        "command": "python -m kernels.benchmarks peers",
        "tolerances": {},
    }
    return common | {"environment": environment(**told), "job": job, "cells": cells}


def model_cell(workload: str, ratio: float, schedule: str = "auto", memory: float = 1.02) -> dict:
    latency = {
        "unit": "s",
        "samples": {"plain": [0.1] * 6, "attnres": [0.1 * ratio] * 6},
        "ratio": {"median": ratio, "low": ratio - 0.002, "high": ratio + 0.002, "confidence": 0.97},
        "device": GPU,
        "threads": 8,
        "calls_per_sample": 1,
    }
    bytes_of = {"model": 1 << 30, "held": 0, "step": 1 << 30, "peak": 2 << 30}
    launches = {"kernels": 10, "copies": 0, "graphs": int(workload == DECODE)}
    found = {"workload": workload, "schedule": schedule, "latency": latency}
    found |= {"memory": {"plain": bytes_of, "attnres": bytes_of, "ratio": memory}}
    found |= {"launches": {"plain": launches, "attnres": dict(launches), "ratio": 1.0}}
    return found | ({"cuda_graphs": True, "cache": {"tokens": 2047, "bytes": 1 << 28}} if workload == DECODE else {})


def model_record(name: str = MODELS[0], cells: list[dict] | None = None, device: str = "cuda", **told) -> dict:
    """Prefill, training and decode, all within their goals, unless ``cells`` are given."""
    cells = (
        [model_cell(PREFILL, 1.01), model_cell(TRAINING, 1.02), model_cell(DECODE, 1.04)] if cells is None else cells
    )
    job = {"load": {"device": device, "dtype": "bfloat16"}, "options": {}, "without_dropout": False}
    return {
        "schema_version": 2,
        "kind": "bench model",
        "command": "attnres bench model",
        "environment": environment(**told),
        "model": {"name": name, "parameters": 10, "bytes": 20},
        "job": job,
        "inputs": {"input_ids": [4, 2048]},
        "plan": [],
        "cells": cells,
    }
