"""The text of graphs: one line per node, and what each kind of node and argument looks like."""

from __future__ import annotations

import ast
import operator
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from attnres_kernels.definition.naive import key_vector
from attnres_passes.ir.annotations import Annotation, annotate
from attnres_passes.ir.levels import Level
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ir.text import graph_text
from tests.passes.helpers import WIDTH, Function, captured, levels_of, line_of, rewritten, sample
from tests.passes.ir.text_graph import argument_names, assigned_names
from tests.passes.rewrite.test_rewrite import tiny
from tests.passes.rewrite.test_rewrite_values import checkpointed, stack


def text_of(graph: Graph, root: nn.Module | None = None) -> str:
    return graph_text(GraphModule(root or nn.Module(), graph))


def call_text(target: Any, argument: Any) -> str:
    """The right side of the line of a call of ``target(x, argument)``."""
    graph = Graph()
    graph.call_function(target, (graph.placeholder("x"), argument))
    graph.output(None)
    return text_of(graph).splitlines()[4].split(" = ", 1)[1]


def annotation_of(value: Any) -> str:
    """What stands between the name of a placeholder with this example value and the comma."""
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = value
    graph.output(x)
    return text_of(graph).splitlines()[2].removeprefix("    x").removesuffix(",")


def test_whole_text() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    y = graph.placeholder("y")
    x.meta["example_value"] = torch.ones(2, 3)
    total = graph.call_function(operator.add, (x, y))
    total.meta["example_value"] = torch.ones(2, 3)
    annotate(total, Annotation("write", 0, block=1, sublayer=2))
    graph.output((total,))
    assert text_of(graph) == (
        "def forward(\n"
        "    self,\n"
        "    x: f32[2, 3],\n"
        "    y,\n"
        "):\n"
        "    add: f32[2, 3] = operator.add(x, y)  # attnres: write stream=0 block=1 sublayer=2\n"
        "    return (add,)\n"
    )


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "f32"),
        (torch.float64, "f64"),
        (torch.bfloat16, "bf16"),
        (torch.float16, "f16"),
        (torch.int64, "i64"),
        (torch.int32, "int32"),
        (torch.bool, "bool"),
        (torch.complex64, "complex64"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "target",
)
def test_dtypes(dtype: torch.dtype, name: str) -> None:
    assert annotation_of(torch.empty(4, 0, dtype=dtype)) == f": {name}[4, 0]"


@pytest.mark.parametrize("value", [None, 3, True, (torch.ones(2), torch.ones(2)), torch.Size([2])])
def test_only_tensors_are_annotated(value: Any) -> None:
    assert annotation_of(value) == ""


def test_value_that_autograd_recorded_is_shown() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(5)
    graph.output(x)
    assert "    x: f32[5],\n" in text_of(graph)


def test_dynamic_sizes_are_shown_as_symbols() -> None:
    x = sample(2, 6, WIDTH)
    torch._dynamo.mark_dynamic(x, 1)
    text = graph_text(captured(lambda self, x: torch.cat([x, x], 1).sin(), x).gm)
    symbol, *others = set(re.findall(r"s\d+", text))
    assert not others
    assert f"    {symbol},\n    l_args_0_: f64[2, {symbol}, {WIDTH}],\n" in text
    assert f": f64[2, 2*{symbol}, {WIDTH}] = torch.cat(" in text
    ast.parse(text)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (torch.add, "torch.add"),
        (torch.conv2d, "torch.conv2d"),
        (torch.ops.aten.relu.default, "torch.ops.aten.relu"),
        (torch.ops.aten.add.Tensor, "torch.ops.aten.add.Tensor"),
        (torch.ops.attnres.depth_attention.default, "torch.ops.attnres.depth_attention"),
        (torch.ops.higher_order.tag_activation_checkpoint, "torch.ops.higher_order.tag_activation_checkpoint"),
        (key_vector, "naive.key_vector"),
        (operator.getitem, "operator.getitem"),
        (operator.iadd, "operator.iadd"),
        (getattr, "builtins.getattr"),
        (F.linear, "F.linear"),
        (F.dropout, "F.dropout"),
        (F.scaled_dot_product_attention, "F.scaled_dot_product_attention"),
        (torch.amp.autocast_mode._enter_autocast, "torch.amp.autocast_mode._enter_autocast"),
        (torch._C._set_grad_enabled, "torch._C._set_grad_enabled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "of",
)
def test_names_of_functions(target: Any, name: str) -> None:
    assert call_text(target, "real") == f"{name}(x, 'real')"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (1e-12, "1e-12"),
        (float("-inf"), "-inf"),
        ("mean", "'mean'"),
        (..., "Ellipsis"),
        (slice(None), "slice(None, None, None)"),
        (slice(1, None, 2), "slice(1, None, 2)"),
        ((..., slice(None, -1), None), "(Ellipsis, slice(None, -1, None), None)"),
        ((), "()"),
        ((8,), "(8,)"),
        (torch.Size([2, 3]), "(2, 3)"),
        ([], "[]"),
        ([1, [2, (3,), [None]]], "[1, [2, (3,), [None]]]"),
        ({"a": [1], "b": {"c": ()}}, "{'a': [1], 'b': {'c': ()}}"),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.contiguous_format, "torch.contiguous_format"),
        (torch.strided, "torch.strided"),
        (torch.device("cpu"), "device(type='cpu')"),
        (torch.device("cuda", 1), "device(type='cuda', index=1)"),
    ],
    ids=str,
)
def test_arguments(value: Any, text: str) -> None:
    assert call_text(torch.add, value) == f"torch.add(x, {text})"
    ast.parse(text)


def test_nodes_inside_of_arguments_are_shown_by_name() -> None:
    graph = Graph()
    x, n = graph.placeholder("x"), graph.placeholder("n")
    part = graph.call_function(operator.getitem, (x, (..., slice(n, None), slice(0, None, n))))
    whole = graph.call_function(torch.cat, ([x, part],), {"dim": n, "out": {"of": (x,)}})
    graph.output(whole)
    text = text_of(graph)
    assert "    getitem = operator.getitem(x, (Ellipsis, slice(n, None, None), slice(0, None, n)))\n" in text
    assert "    cat = torch.cat([x, getitem], dim=n, out={'of': (x,)})\n" in text
    ast.parse(text)


def test_kinds_of_nodes() -> None:
    root = nn.Module()
    root.inner = nn.Linear(2, 2)
    graph = Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("inner.weight")
    method = graph.call_method("view", (x, -1, 2), {"size": None})
    bare = graph.call_method("sinh", (method,))
    module = graph.call_module("inner", (bare,), {"scale": 2})
    graph.call_function(torch.empty, (), {"dtype": torch.bool})
    graph.output((module, weight))
    assert text_of(graph, root).splitlines()[4:] == [
        "    inner_weight = self.inner.weight",
        "    view = x.view(-1, 2, size=None)",
        "    sinh = view.sinh()",
        "    inner = self.inner(sinh, scale=2)",
        "    empty = torch.empty(dtype=torch.bool)",
        "    return (inner, inner_weight)",
    ]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (lambda x: x, "x"),
        (lambda x: (x,), "(x,)"),
        (lambda x: [x, None, 3], "[x, None, 3]"),
        (lambda x: {"logits": x, "cache": (x, [x])}, "{'logits': x, 'cache': (x, [x])}"),
        (lambda x: (), "()"),
        (lambda x: None, "None"),
    ],
)
def test_outputs(form: Any, text: str) -> None:
    graph = Graph()
    graph.output(form(graph.placeholder("x")))
    assert text_of(graph).endswith(f"):\n    return {text}\n")


def places(self: Function, x: Tensor) -> Tensor:
    x = x.sinh().cosh()  # first
    x = self.linear[0](x)  # second
    return x.sin()  # third


def test_module_and_line_open_each_run_of_nodes() -> None:
    text = graph_text(captured(places).gm)
    first, second, third = (f"test_text.py:{line_of(places, f'# {name}')}" for name in ("first", "second", "third"))
    body = [line.split(" = ")[0].split(":")[0] if " = " in line else line for line in text.splitlines()]
    assert body[body.index("):") + 1 :] == [
        f"    # {first}",
        "    sinh",
        "    x",
        f"    # linear.0  {second}",
        "    x_1",
        f"    # {third}",
        "    sin",
        "    return (sin,)",
    ]


def test_nodes_from_nowhere_get_no_comment_and_end_a_run() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    nodes = [graph.call_function(torch.sin, (x,)) for _ in range(4)]
    for node in (nodes[0], nodes[1], nodes[3]):
        node.meta["stack_trace"] = 'File "/somewhere/model.py", line 7, in forward\n    y = x.sin()\n'
    graph.output(x)
    here = "    # model.py:7"
    lines = [f"    {node.name} = torch.sin(x)" for node in nodes]
    assert text_of(graph).splitlines()[4:-1] == [here, *lines[:3], here, lines[3]]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Annotation("parameter", 1, read=ReadId(1, 2)), "parameter 1.2"),
        (Annotation("schedule", 0, stage=3), "schedule stream=0 stage=3"),
        (Annotation("read", 0, block=1, sublayer=2, read=ReadId(0, 4)), "read 0.4 block=1 sublayer=2"),
    ],
)
def test_annotations_end_the_line(annotation: Annotation, text: str) -> None:
    graph = Graph()
    x = annotate(graph.placeholder("x"), annotation)
    y = annotate(graph.call_function(torch.sin, (x,)), annotation)
    graph.output(y)
    assert f"    x,  # attnres: {text}\n" in text_of(graph)
    assert f"    sin = torch.sin(x)  # attnres: {text}\n" in text_of(graph)


def graph_at(level: Level, model: Any) -> GraphModule:
    found, analysis, _ = rewritten(model, block_size=2)
    return levels_of(found.gm, analysis)[level]


@pytest.mark.parametrize("model", [tiny, stack(checkpointed)], ids=["tiny", "checkpointed"])
@pytest.mark.parametrize("level", list(Level))
def test_each_node_stands_once_and_in_order_at_every_level(level: Level, model: Any) -> None:
    gm = graph_at(level, model)
    text = graph_text(gm)
    assert [*argument_names(text), *assigned_names(text)] == [
        node.name for node in gm.graph.nodes if node.op != "output"
    ]


@pytest.mark.parametrize("level", list(Level))
def test_text_is_the_same_for_the_same_model(level: Level) -> None:
    first = graph_text(graph_at(level, tiny))
    torch._dynamo.reset()
    assert graph_text(graph_at(level, tiny)) == first


def test_scalar_tensor_parses() -> None:
    ast.parse(graph_text(captured(lambda self, x: x.sum() * x).gm))


def test_each_line_uses_the_nodes_that_its_node_takes() -> None:
    gm = graph_at(Level.LOWERED, tiny)
    nodes: dict[str, Node] = {node.name: node for node in gm.graph.nodes}
    lines = [line.strip() for line in graph_text(gm).splitlines() if " = " in line]
    assert len(lines) == len([node for node in nodes.values() if node.op not in ("placeholder", "output")])
    for line in lines:
        call = ast.parse(line).body[0].value
        used = {part.id for part in ast.walk(call) if isinstance(part, ast.Name)}
        node = nodes[re.match(r"\w+", line)[0]]
        assert used & set(nodes) == {source.name for source in node.all_input_nodes}, line
