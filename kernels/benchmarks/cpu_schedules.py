"""How long the reads of a forward take on the CPU, by schedule and by tokens: what ``auto`` chooses by there.

    python -m kernels.benchmarks.cpu_schedules --json docs/benchmarks/schedules-cpu.json

The model has sublayers that do next to nothing, so that its reads are what is timed; without gradients, compiled by
Inductor. Schedules take turns, and a sample is the processor time of a call on one thread, which other programs on the
machine disturb less than the time on a clock. Cells are added to those that the record has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attnres_compile
from attnres_compile.report.records import record_head

KIND, SCHEMA_VERSION = "schedules on the CPU", 1
SCHEDULES = ("direct", "two_phase")
TOKENS = (1, 4, 16, 64, 256)
BURN_IN = 5


class Thin(nn.Module):
    """Sublayers of a norm and a product with a thin matrix, on one stream."""

    def __init__(self, writes: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(writes))
        self.thin = nn.ModuleList(nn.Sequential(nn.Linear(width, 4), nn.Linear(4, width)) for _ in range(writes))
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for norm, thin in zip(self.norms, self.thin, strict=True):
            x = x + thin(norm(x))
        out: Tensor = self.last(x)
        return out


def samples_at(tokens: int, width: int, writes: int, blocks: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of ``rounds`` calls of each schedule, taking turns.

    Args:
        tokens: of the input.
        width: of the stream.
        writes: sublayers.
        blocks: that their outputs are grouped into.
        rounds: calls of each.
    """
    torch.manual_seed(0)
    x, models = torch.randn(1, tokens, width), {}
    for name in SCHEDULES:
        torch.manual_seed(0)
        model = Thin(writes, width)
        attnres_compile.prepare(model, (x,), num_blocks=blocks, schedule=name)
        model.compile(backend="attnres", dynamic=False)
        models[name] = model
    found: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    calls = max(1, 32 // tokens)
    with torch.no_grad():
        for turn in range(BURN_IN + rounds):
            for name, model in models.items():
                start = time.process_time()
                for _ in range(calls):
                    model(x)
                if turn >= BURN_IN:
                    found[name].append((time.process_time() - start) / calls)
    torch.compiler.reset()
    return found


def main(words: Sequence[str]) -> None:
    """Measure, print a table, and keep the samples.

    Args:
        words: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m kernels.benchmarks.cpu_schedules", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--writes", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    shape = {"width": given.width, "writes": given.writes, "blocks": given.blocks}
    kept = given.json is not None and given.json.exists()
    cells: list[dict[str, Any]] = json.loads(given.json.read_text())["cells"] if kept else []
    for tokens in given.tokens:
        samples = samples_at(tokens, rounds=given.rounds, **shape)
        ratios = sorted(a / b for a, b in zip(*(samples[name] for name in SCHEDULES), strict=True))
        cells.append({"tokens": tokens, **shape, "samples": samples})
        reads = {name: 1e6 * statistics.median(samples[name]) / given.writes for name in SCHEDULES}
        medians = ", ".join(f"{name} {time_of_read:.1f} us" for name, time_of_read in reads.items())
        spread = f"[{ratios[len(ratios) // 4]:.3f}, {ratios[-1 - len(ratios) // 4]:.3f}]"
        print(f"{tokens} tokens, a read: {medians}; direct / two_phase {statistics.median(ratios):.3f} {spread}")
        if given.json is not None:
            record = record_head(KIND, SCHEMA_VERSION, ["cpu_schedules", *words], "cpu") | {"cells": cells}
            given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
