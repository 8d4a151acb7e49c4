"""The text of a graph is the graph: executed, it builds the graph again, and computes what the graph computes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule

from attnres_compile.capture.capture import Captured, capture
from attnres_kernels.autograd import keys
from attnres_kernels.definition import scheduled
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.streams import Analysis, find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.levels import Level
from attnres_passes.ir.text import graph_text
from attnres_passes.schedule.provider import Provider
from tests.passes.helpers import added_parameters, analysed, levels_of, rewritten
from tests.passes.ir.text_graph import assert_text_is_the_graph, described, executed, graph_of_text
from tests.passes.rewrite.test_rewrite import tiny
from tests.passes.rewrite.test_rewrite_values import checkpointed, stack


def gpt2() -> tuple[Captured, Analysis]:
    """A model of transformers."""
    pytest.importorskip("transformers")
    from attnres_compile.models.load_options import LoadOptions
    from attnres_compile.models.source import load_model

    loaded = load_model("gpt2-tiny", LoadOptions(seq=16))
    (found,) = capture(loaded.model, loaded.args, loaded.kwargs).graphs
    return found, find_streams(trace_aten(found.gm), AttnResConfig(block_size=2))


MODELS: dict[str, Callable[[], tuple[Captured, Analysis]]] = {
    "tiny": lambda: analysed(tiny, block_size=2),
    "checkpointed": lambda: analysed(stack(checkpointed), block_size=2),
    "gpt2-tiny": gpt2,
}
LEVELS = [
    (Level.CAPTURED, Provider.TORCH),
    (Level.REWRITTEN, Provider.TORCH),
    *((level, provider) for level in (Level.SCHEDULED, Level.LOWERED) for provider in Provider),
]


@cache
def levels(model: str, provider: Provider) -> dict[Level, GraphModule]:
    found, analysis = MODELS[model]()
    return levels_of(found.gm, analysis, provider)


@pytest.mark.parametrize(("level", "provider"), LEVELS)
@pytest.mark.parametrize("model", MODELS)
def test_executed_text_builds_the_graph(model: str, level: Level, provider: Provider) -> None:
    assert_text_is_the_graph(levels(model, provider)[level])


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("model", ["tiny", "checkpointed"])
def test_executed_text_computes_what_the_graph_does(model: str, level: Level) -> None:
    found, analysis = MODELS[model]()
    _, _, result = rewritten(tiny if model == "tiny" else stack(checkpointed), block_size=2)
    gm = levels_of(found.gm, analysis)[level]
    added = [] if level is Level.CAPTURED else added_parameters(result, analysis, seed=2)
    inputs = [*found.inputs, *added]
    (value,), (expected,) = executed(gm, *inputs), gm(*inputs)
    assert torch.equal(value, expected)


def module_of(graph: Graph, **modules: torch.nn.Module) -> GraphModule:
    root = torch.nn.Module()
    for name, module in modules.items():
        root.add_module(name, module)
    return GraphModule(root, graph)


def test_names_of_values_do_not_hide_names_of_functions() -> None:
    graph = Graph()
    values = [graph.placeholder(name) for name in ("operator", "F", "keys", "scheduled", "key_matrix", "output")]
    for function in (operator.add, F.gelu, F.dropout, keys.key_matrix, scheduled.key_matrix, torch.add):
        graph.call_function(function, (*values, 1))
    graph.output(tuple(graph.nodes))
    assert_text_is_the_graph(module_of(graph))


def test_every_kind_of_node_and_argument() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.call_module("inner", (x,), {"scale": 2})
    weight = graph.get_attr("inner.weight")
    at = graph.call_method("view", (x, -1, 2), {"dtype": torch.bfloat16})
    part = graph.call_function(operator.getitem, (at, (..., slice(x, None), slice(None, -1, 2), None)))
    options = {"device": torch.device("cuda", 1), "layout": torch.strided, "out": {"of": (x, [weight])}, "name": "x"}
    graph.call_function(torch.full, ((2, float("inf")), float("-inf")), options)
    graph.call_function(torch.ops.aten.add.Tensor, (part, float("nan")))
    graph.call_function(torch.ops.aten.relu.default, ([x, [part, (3,), [None]]], torch.Size([2, 3])))
    graph.call_function(torch.ops.aten.slice, (x, 0, 0, -1, 2))
    for function in (F.max_pool2d, F.pad, torch._C._nn.pad):
        graph.call_function(function, (x, 2))
    graph.call_function(getattr, (x, "real"))
    graph.output({"logits": part, "cache": (x, [x])})
    assert_text_is_the_graph(module_of(graph, inner=torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(x_1, (8,), ", "(x_1, "),
        ("operator.add(x, linear)", "operator.add(linear, x)"),
        ("operator.add(x, linear)", "torch.add(x, linear)"),
        ("l_args_0_.sinh()", "l_args_0_.cosh()"),
        ("1e-12", "1e-13"),
        ("return (layer_norm_3,)", "return layer_norm_3"),
    ],
)
def test_another_text_is_another_graph(old: str, new: str) -> None:
    gm = levels("tiny", Provider.TORCH)[Level.CAPTURED]
    text = graph_text(gm)
    assert old in text
    names = [node.name for node in gm.graph.nodes]

    def built(text: str) -> list[tuple[object, ...]]:
        return described(dict(zip(graph_of_text(text, gm).nodes, names, strict=True)))

    assert built(text) == described(dict(zip(gm.graph.nodes, names, strict=True)))
    assert built(text.replace(old, new)) != built(text)
