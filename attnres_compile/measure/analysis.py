"""``attnres bench analysis``: seconds of capture, analysis and rewrite by depth, and how they grow with it.

depth     the toy has that many Transformer layers, two sublayers each
capture   Dynamo, from the call of the compiled model to the backend
analysis  the captured graph to the plan
rewrite   the plan to the rewritten graph
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional

from attnres_compile.measure.environment import describe_environment
from attnres_compile.measure.measure import MeasureError
from attnres_compile.measure.stage_times import STAGES, stage_times

SCHEMA_VERSION = 1
KIND = "bench analysis"


class PreNormToy(nn.Module):
    """A PreNorm transformer with real attention. Input and output float ``[batch, tokens, width]``."""

    def __init__(self, layers: int, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        normed: torch.Tensor = self.norm(x)
        return normed


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        mlp: torch.Tensor = self.down(functional.gelu(self.up(self.mlp_norm(x))))
        return x + mlp

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


def bench_analysis(layers: Sequence[int], rounds: int, command: Sequence[str] = ()) -> dict[str, Any]:
    """Time the stages for toys of these depths, the depths in turn, and return the record for JSON.

    Raises MeasureError if fewer than two different depths are given or a number is out of range.
    """
    depths = sorted(set(layers))
    if rounds < 1:
        raise MeasureError(f"rounds is {rounds}: pass at least 1")
    if depths and depths[0] < 1:
        raise MeasureError(f"{depths[0]} layers cannot be timed: pass depths of at least 1")
    if len(depths) < 2:
        raise MeasureError("growth cannot be seen at one depth: pass at least 2 different depths")
    seconds: dict[str, dict[str, list[float]]] = {stage: {str(depth): [] for depth in depths} for stage in STAGES}
    nodes: dict[str, int] = {}
    x = torch.zeros(1, 8, 16)
    # The first compilation of a process imports most of the compiler.
    stage_times(PreNormToy(1), (x,))
    for _ in range(rounds):
        for depth in depths:
            times = stage_times(PreNormToy(depth), (x,))
            nodes[str(depth)] = times.nodes
            for stage, value in times.seconds.items():
                seconds[stage][str(depth)].append(value)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "command": " ".join(command),
        "environment": describe_environment("cpu"),
        "nodes": nodes,
        "seconds": seconds,
        "exponents": {stage: growth_exponent(_medians(by_depth)) for stage, by_depth in seconds.items()},
    }


def growth_exponent(seconds_by_depth: dict[int, float]) -> float:
    """The ``e`` of the least-squares fit of ``seconds = c depth^e`` (a line between the logarithms)."""
    depths = torch.tensor(list(seconds_by_depth), dtype=torch.float64).log().tolist()
    seconds = torch.tensor(list(seconds_by_depth.values()), dtype=torch.float64).log().tolist()
    return statistics.linear_regression(depths, seconds).slope


def analysis_table(record: dict[str, Any]) -> str:
    """The table of a record of ``bench_analysis``. Raises MeasureError for another kind or version."""
    if record.get("kind") != KIND or record.get("schema_version") != SCHEMA_VERSION:
        raise MeasureError(f"this is no record of `attnres {KIND}` with schema_version {SCHEMA_VERSION}: measure again")
    medians = {stage: _medians(by_depth) for stage, by_depth in record["seconds"].items()}
    depths = list(next(iter(medians.values())))
    rows: list[list[object]] = [
        [depth, record["nodes"][str(depth)], *(f"{medians[stage][depth]:.3f}" for stage in medians)] for depth in depths
    ]
    rows.append(["exponent", "", *(f"{record['exponents'][stage]:.2f}" for stage in medians)])
    environment = record["environment"]
    heading = (
        f"median seconds by depth; {environment['device']}, torch {environment['versions']['torch']}, "
        f"{environment['date']}"
    )
    table = tabulate(rows, ("layers", "graph nodes", *(f"{stage} [s]" for stage in medians)), disable_numparse=True)
    return f"{heading}\n{table}"


def _medians(by_depth: dict[str, list[float]]) -> dict[int, float]:
    return {int(depth): statistics.median(values) for depth, values in by_depth.items()}
