"""Marking a rewritten graph with pipeline stages: what goes where, what may cross, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnres_compile
from attnres_compile.api.explain import explain
from attnres_passes.ir.annotations import annotation_of, stages_of
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.text import graph_text
from attnres_passes.ranks.layout import StageError, StageLayout
from attnres_passes.ranks.stages import StagedGraph, stage
from tests.passes.helpers import Function, rewritten, sample

LAYERS = 4


def sublayer(m: Function, x: Tensor, k: int) -> Tensor:
    return m.linear[k](m.norm[k](x))


def plain(m: Function, x: Tensor) -> Tensor:
    for k in range(LAYERS):
        x = x + sublayer(m, x, k)
    return m.norm[LAYERS](x)


def staged(function: Any, *args: Tensor, ranks: int = 2, virtual: int = 1, **options: Any) -> tuple[StagedGraph, Plan]:
    cut_points = options.pop("cut_points", None)
    _, analysis, result = rewritten(function, *args, layers=LAYERS, **(options or {"block_size": 3}))
    plan = analysis.plan
    return stage(result.gm, plan, StageLayout(ranks, virtual), cut_points=cut_points), plan


def refused(function: Any, *args: Tensor, **options: Any) -> str:
    with pytest.raises(StageError) as caught:
        staged(function, *args, **options)
    return str(caught.value)


def with_positions(m: Function, x: Tensor) -> Tensor:
    """A table made of no parameter, used by every sublayer, and made under no_grad."""
    with torch.no_grad():
        table = torch.arange(x.shape[1], dtype=x.dtype)[:, None].sin()
    for k in range(LAYERS):
        x = x + sublayer(m, x, k) * table
    return m.norm[LAYERS](x)


def test_every_node_has_its_chunk_and_edges_rise() -> None:
    result, _ = staged(with_positions, ranks=2, virtual=2, block_size=3)
    sources = {node for keyed in result.sources for node in keyed.values()}
    copied = set()
    for node in result.gm.graph.nodes:
        if node.op == "output":
            continue
        here = stages_of(node)
        assert here, node
        copied.update({node.name} if len(here) > 1 else ())
        for used in node.all_input_nodes:
            assert min(stages_of(used)) <= min(here)
            assert set(here) <= set(stages_of(used)) or used in sources
    assert {"arange", "table"} <= copied
    assert result.plan.cuts == (0, 1, 2, 3, 4)
    assert [list(keyed) for keyed in result.sources] == [[], [0, "open"], [0, "open"], [0, 1]]


def test_the_text_shows_it() -> None:
    result, _ = staged(with_positions, ranks=4, block_size=3)
    text = graph_text(result.gm)
    assert re.search(r"read_0_2.*# attnres: read 0\.2 block=1 sublayer=2 stage=2", text)
    assert re.search(r"arange.*# attnres: stage=0 copies=1,2,3", text)
    body = [line for line in text.splitlines() if " = " in line or re.match(r"    l_|    attnres_", line)]
    assert all("stage=" in line for line in body), text


def test_the_given_graph_is_not_marked() -> None:
    _, analysis, result = rewritten(plain, layers=LAYERS)
    before = graph_text(result.gm)
    stage(result.gm, analysis.plan, StageLayout(2))
    assert graph_text(result.gm) == before


def test_parameters_go_with_their_sublayer() -> None:
    result, _ = staged(plain, ranks=2)
    assert result.plan.cuts == (0, 3, 4)  # reads count, and the last chunk has the final one
    of_chunk: dict[int, list[str]] = {0: [], 1: []}
    for node in result.gm.graph.nodes:
        if node.op == "placeholder":
            (chunk,) = stages_of(node)
            of_chunk[chunk].append(node.name)
    assert sum("linear" in name for name in of_chunk[1]) == 2  # weight and bias of the last of four
    assert sum("norm" in name for name in of_chunk[1]) == 4  # its norm and the final one
    queries = [
        annotation.read
        for node in result.gm.graph.nodes
        if (annotation := annotation_of(node)) and annotation.kind == "parameter"
    ]
    assert len(queries) == 2 * LAYERS


def test_explain_and_the_backend_mark_stages() -> None:
    model = Function(plain, LAYERS)
    explanation = explain(model, (sample(),), stages=2, block_size=2)
    for level in ("rewritten", "scheduled", "lowered"):
        assert "stage=0" in explanation.text(level), level
        assert "stage=1" in explanation.text(level), level
    assert "stage=" not in explanation.text("captured")
    expected = explain(model, (sample(),), block_size=2).text("lowered")
    assert re.sub(r"  # attnres: .*", "", explanation.text("lowered")) == re.sub(r"  # attnres: .*", "", expected)
    attnres_compile.prepare(model, (sample(),), stages=2, block_size=2)
    with torch.no_grad():
        eager = torch.compile(model, backend="attnres", options={"inner": "eager"})(sample())
    other = Function(plain, LAYERS)
    attnres_compile.prepare(other, (sample(),), block_size=2)
    with torch.no_grad():
        assert torch.equal(eager, torch.compile(other, backend="attnres", options={"inner": "eager"})(sample()))


# What is refused


def test_skipping_value() -> None:
    def function(m: Function, x: Tensor) -> Tensor:
        first = sublayer(m, x, 0)
        x = x + first
        for k in range(1, LAYERS):
            x = x + sublayer(m, x, k) * first.sigmoid()
        return m.norm[LAYERS](x)

    message = refused(function)
    assert "is made in chunk 0 and is used by" in message
    assert "only completed blocks and the open partial sum go from chunk to chunk" in message


def test_output_on_the_way() -> None:
    def function(m: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = m.norm[0](x).sum(-1)
        return plain(m, x), kept

    assert "is made in chunk 0 and is an output of the model in chunk 1" in refused(function)


def test_tied_weights() -> None:
    def function(m: Function, x: Tensor) -> Tensor:
        x = F.embedding(torch.zeros(2, 3, dtype=torch.int64), m.linear[0].weight)
        for k in range(1, LAYERS):
            x = x + sublayer(m, x, k)
        return m.norm[LAYERS](x) @ m.linear[0].weight.T

    message = refused(function)
    assert "is a parameter that chunks 0, 1 use" in message
    assert "Untie the weights" in message
    assert staged(function, ranks=1)[0].plan.cuts == (0, 3)


def test_random_value_for_all() -> None:
    def function(m: Function, x: Tensor) -> Tensor:
        noise = torch.rand(8, dtype=x.dtype)
        for k in range(LAYERS):
            x = x + sublayer(m, x, k) * noise
        return m.norm[LAYERS](x)

    assert "is random, and chunks 0, 1 use it" in refused(function)


def test_buffer_changed_in_place() -> None:
    class Counting(Function):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__(function, LAYERS)
            self.register_buffer("seen", torch.zeros(8, dtype=torch.float64))

    def shared(m: Any, x: Tensor) -> Tensor:
        m.seen.add_(1.0)
        for k in range(LAYERS):
            x = x + sublayer(m, x, k) * m.seen
        return m.norm[LAYERS](x)

    def local(m: Any, x: Tensor) -> Tensor:
        for k in range(LAYERS):
            inner = sublayer(m, x, k)
            if k == 3:
                m.seen.add_(inner.detach().mean())
                inner = inner * m.seen
            x = x + inner
        return m.norm[LAYERS](x)

    assert "is changed in place, and chunks 0, 1 use it" in refused(Counting(shared))
    result, _ = staged(Counting(local))
    assert [stages_of(node) for node in result.gm.graph.nodes if "seen" in node.name] == [(1,)]


def test_table_changed_in_place_is_copied_with_its_change() -> None:
    def function(m: Function, x: Tensor) -> Tensor:
        table = torch.ones(3, 8, dtype=x.dtype)
        table[1] = 2.0
        for k in range(LAYERS):
            x = x + sublayer(m, x, k) * table
        return m.norm[LAYERS](x)

    result, _ = staged(function)
    changes = [node for node in result.gm.graph.nodes if node.op == "call_function" and "setitem" in str(node.target)]
    assert [stages_of(node) for node in changes] == [(0, 1)]


def test_dropout_on_the_stream() -> None:
    def function(m: Function, x: Tensor) -> Tensor:
        for k in range(LAYERS):
            x = F.dropout(x + sublayer(m, x, k), 0.1, m.training)
        return m.norm[LAYERS](x)

    assert "the stream is cast, permuted or dropped out in between" in refused(function, virtual=2)


def test_two_streams() -> None:
    def function(m: Function, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for k in range(2):
            x, y = x + sublayer(m, x, k), y + sublayer(m, y, k + 2)
        return m.norm[LAYERS](x), m.norm[LAYERS](y)

    assert "a pipeline needs a model with one residual stream, and this one has 2" in refused(
        function, sample(), sample()
    )


def test_more_chunks_than_sublayers() -> None:
    assert "5 chunks for 4 sublayers" in refused(plain, ranks=5)


def test_dynamic_sizes() -> None:
    x = sample(5, 3, 8)
    torch._dynamo.mark_dynamic(x, 0)
    assert "has a dynamic size, and pipeline stages have fixed ones" in refused(plain, x)
