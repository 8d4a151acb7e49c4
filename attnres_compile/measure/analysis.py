"""``attnres bench analysis``: seconds of capture, analysis and rewrite by depth, and how they grow with it.

depth     the toy has that many Transformer layers, two sublayers each
capture   Dynamo, from the call of the compiled model to the backend
analysis  the captured graph to the plan
rewrite   the plan to the rewritten graph
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

from attnres_compile.progress import each, stage
from attnres_compile.report.comparison import MeasureError
from attnres_compile.report.records import check_record, record_head
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Stream
from attnres_passes.rewrite.rewrite import rewrite

SCHEMA_VERSION = 1
KIND = "bench analysis"
STEPS = ("capture", "analysis", "rewrite")


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


def measure_analysis(layers: Sequence[int], rounds: int, command: Sequence[str] = ()) -> dict[str, Any]:
    """Time the steps for toys of these depths, the depths in turn, and return the record for JSON.

    Args:
        layers: the depths, two different ones at least.
        rounds: samples per depth.
        command: the words of the command line, for the record.

    Raises:
        MeasureError: fewer than two different depths, or a number out of range.
    """
    depths = sorted(set(layers))
    if rounds < 1:
        raise MeasureError(f"rounds is {rounds}: pass at least 1")
    if depths and depths[0] < 1:
        raise MeasureError(f"{depths[0]} layers cannot be timed: pass depths of at least 1")
    if len(depths) < 2:
        raise MeasureError("growth cannot be seen at one depth: pass at least 2 different depths")
    seconds: dict[str, dict[str, list[float]]] = {step: {str(depth): [] for depth in depths} for step in STEPS}
    nodes: dict[str, int] = {}
    x = torch.zeros(1, 8, 16)
    # The first compilation of a process imports most of the compiler.
    stage("the first compilation, which is not timed")
    step_times(PreNormToy(1), (x,))
    for depth in each([depth for _ in range(rounds) for depth in depths], "depth, round by round", is_timed=True):
        times = step_times(PreNormToy(depth), (x,))
        nodes[str(depth)] = times.nodes
        for step, value in times.seconds.items():
            seconds[step][str(depth)].append(value)
    return {
        **record_head(KIND, SCHEMA_VERSION, command, "cpu"),
        "nodes": nodes,
        "seconds": seconds,
        "exponents": {step: growth_exponent(_medians(by_depth)) for step, by_depth in seconds.items()},
    }


def growth_exponent(seconds_by_depth: dict[int, float]) -> float:
    """The ``e`` of the least-squares fit of ``seconds = c depth^e`` (a line between the logarithms)."""
    depths = torch.tensor(list(seconds_by_depth), dtype=torch.float64).log().tolist()
    seconds = torch.tensor(list(seconds_by_depth.values()), dtype=torch.float64).log().tolist()
    return statistics.linear_regression(depths, seconds).slope


def analysis_table(record: dict[str, Any]) -> str:
    """The table of a record of ``measure_analysis``. Raises MeasureError for another kind or version."""
    check_record(record, KIND, SCHEMA_VERSION)
    medians = {step: _medians(by_depth) for step, by_depth in record["seconds"].items()}
    depths = list(next(iter(medians.values())))
    rows: list[list[object]] = [
        [depth, record["nodes"][str(depth)], *(f"{medians[step][depth]:.3f}" for step in medians)] for depth in depths
    ]
    rows.append(["exponent", "", *(f"{record['exponents'][step]:.2f}" for step in medians)])
    environment = record["environment"]
    heading = (
        f"median seconds by depth; {environment['device']}, torch {environment['versions']['torch']}, "
        f"{environment['date']}"
    )
    table = tabulate(rows, ("layers", "graph nodes", *(f"{step} [s]" for step in medians)), disable_numparse=True)
    return f"{heading}\n{table}"


def _medians(by_depth: dict[str, list[float]]) -> dict[int, float]:
    return {int(depth): statistics.median(values) for depth, values in by_depth.items()}


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one compilation by the names of STEPS, and the nodes of the captured graph."""

    seconds: dict[str, float]
    nodes: int


def step_times(model: nn.Module, args: tuple[Any, ...], config: AttnResConfig | None = None) -> StepTimes:
    """Capture ``model(*args)`` as one graph, analyse and rewrite it, and time each.

    The compiled code that torch keeps for other models is dropped, so that every call captures anew.

    Args:
        model: captured as a whole; what Dynamo raises for another one is raised.
        args: of its call.
        config: of the rewrite, the default one if it is left out.

    Raises:
        MeasureError: the model has no stream.
    """
    taken: list[StepTimes] = []
    streams: list[Stream] = []

    def backend(gm: GraphModule, example_inputs: list[torch.Tensor]) -> GraphModule:
        captured = time.perf_counter()
        analysis = find_streams(trace_aten(gm), config or AttnResConfig())
        analysed = time.perf_counter()
        rewrite(gm, analysis)
        rewritten = time.perf_counter()
        seconds = (captured - start, analysed - captured, rewritten - analysed)
        taken.append(StepTimes(dict(zip(STEPS, seconds, strict=True)), len(gm.graph.nodes)))
        streams.extend(analysis.plan.streams)
        return gm

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    # Else the garbage of an earlier call is collected at this one's expense.
    gc.collect()
    start = time.perf_counter()
    with torch.no_grad():
        compiled(*args)
    if not streams:
        raise MeasureError(f"{type(model).__name__} has no stream to rewrite: time a PreNorm model")
    return taken[0]
