"""The rewrite: its text, what it keeps, and that it computes the paper's equations."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from attnres_passes.ir.annotations import Annotation, annotation_of
from attnres_passes.ir.levels import Level, check_level, is_depth_attention
from attnres_passes.ir.read_id import ReadId, ReadParameter
from attnres_passes.ir.text import graph_text
from attnres_passes.rewrite.rewrite import rewrite
from tests.passes.helpers import (
    Function,
    analysed,
    rewritten,
)


def tiny(self: Function, x: Tensor) -> Tensor:
    x = x.sinh()
    x = x + self.linear[0](self.norm[0](x))
    x = x + self.linear[1](self.norm[1](x))
    x = x + self.linear[2](self.norm[2](x))
    return self.norm[-1](x)


def normalized(text: str) -> str:
    """Line numbers of this file and the long names of parameters taken out."""
    text = re.sub(r"(test_rewrite\.py):\d+", r"\1:N", text)
    return re.sub(r"l_self_modules_(\w+?)_modules_(\d)_parameters_(\w+?)_\b", r"\1_\2_\3", text)


BEFORE = """\
def forward(
    self,
    l_args_0_: f64[2, 3, 8],
    norm_0_weight: f64[8],
    norm_0_bias: f64[8],
    linear_0_weight: f64[8, 8],
    linear_0_bias: f64[8],
    norm_1_weight: f64[8],
    norm_1_bias: f64[8],
    linear_1_weight: f64[8, 8],
    linear_1_bias: f64[8],
    norm_2_weight: f64[8],
    norm_2_bias: f64[8],
    linear_2_weight: f64[8, 8],
    linear_2_bias: f64[8],
    norm_3_weight: f64[8],
    norm_3_bias: f64[8],
):
    # test_rewrite.py:N
    x: f64[2, 3, 8] = l_args_0_.sinh()
    # norm.0  test_rewrite.py:N
    layer_norm: f64[2, 3, 8] = F.layer_norm(x, (8,), norm_0_weight, norm_0_bias, 1e-12)
    # linear.0  test_rewrite.py:N
    linear: f64[2, 3, 8] = F.linear(layer_norm, linear_0_weight, linear_0_bias)
    # test_rewrite.py:N
    x_1: f64[2, 3, 8] = operator.add(x, linear)
    # norm.1  test_rewrite.py:N
    layer_norm_1: f64[2, 3, 8] = F.layer_norm(x_1, (8,), norm_1_weight, norm_1_bias, 1e-12)
    # linear.1  test_rewrite.py:N
    linear_1: f64[2, 3, 8] = F.linear(layer_norm_1, linear_1_weight, linear_1_bias)
    # test_rewrite.py:N
    x_2: f64[2, 3, 8] = operator.add(x_1, linear_1)
    # norm.2  test_rewrite.py:N
    layer_norm_2: f64[2, 3, 8] = F.layer_norm(x_2, (8,), norm_2_weight, norm_2_bias, 1e-12)
    # linear.2  test_rewrite.py:N
    linear_2: f64[2, 3, 8] = F.linear(layer_norm_2, linear_2_weight, linear_2_bias)
    # test_rewrite.py:N
    x_3: f64[2, 3, 8] = operator.add(x_2, linear_2)
    # norm.3  test_rewrite.py:N
    layer_norm_3: f64[2, 3, 8] = F.layer_norm(x_3, (8,), norm_3_weight, norm_3_bias, 1e-12)
    return (layer_norm_3,)
"""

EXPECTED = """\
def forward(
    self,
    l_args_0_: f64[2, 3, 8],
    norm_0_weight: f64[8],
    norm_0_bias: f64[8],
    linear_0_weight: f64[8, 8],
    linear_0_bias: f64[8],
    norm_1_weight: f64[8],
    norm_1_bias: f64[8],
    linear_1_weight: f64[8, 8],
    linear_1_bias: f64[8],
    norm_2_weight: f64[8],
    norm_2_bias: f64[8],
    linear_2_weight: f64[8, 8],
    linear_2_bias: f64[8],
    norm_3_weight: f64[8],
    norm_3_bias: f64[8],
    attnres_0_1_query,  # attnres: parameter 0.1
    attnres_0_1_key_weight,  # attnres: parameter 0.1
    attnres_0_2_query,  # attnres: parameter 0.2
    attnres_0_2_key_weight,  # attnres: parameter 0.2
    attnres_0_3_query,  # attnres: parameter 0.3
    attnres_0_3_key_weight,  # attnres: parameter 0.3
):
    key_0_1 = naive.key_vector(attnres_0_1_query, attnres_0_1_key_weight)  # attnres: key 0.1
    key_0_2 = naive.key_vector(attnres_0_2_query, attnres_0_2_key_weight)  # attnres: key 0.2
    key_0_3 = naive.key_vector(attnres_0_3_query, attnres_0_3_key_weight)  # attnres: key 0.3
    # test_rewrite.py:N
    x: f64[2, 3, 8] = l_args_0_.sinh()
    # norm.0  test_rewrite.py:N
    layer_norm: f64[2, 3, 8] = F.layer_norm(x, (8,), norm_0_weight, norm_0_bias, 1e-12)
    # linear.0  test_rewrite.py:N
    linear: f64[2, 3, 8] = F.linear(layer_norm, linear_0_weight, linear_0_bias)  # attnres: write stream=0 block=1 sublayer=1
    # norm.1  test_rewrite.py:N
    read_0_1: f64[2, 3, 8] = torch.ops.attnres.depth_attention([x, linear], key_0_1, 1e-06, 'mean')  # attnres: read 0.1 block=1 sublayer=1
    layer_norm_1: f64[2, 3, 8] = F.layer_norm(read_0_1, (8,), norm_1_weight, norm_1_bias, 1e-12)
    # linear.1  test_rewrite.py:N
    linear_1: f64[2, 3, 8] = F.linear(layer_norm_1, linear_1_weight, linear_1_bias)
    # test_rewrite.py:N
    add: f64[2, 3, 8] = torch.add(linear, linear_1)  # attnres: write stream=0 block=1 sublayer=2
    # norm.2  test_rewrite.py:N
    read_0_2: f64[2, 3, 8] = torch.ops.attnres.depth_attention([x, add], key_0_2, 1e-06, 'mean')  # attnres: read 0.2 block=2 sublayer=2
    layer_norm_2: f64[2, 3, 8] = F.layer_norm(read_0_2, (8,), norm_2_weight, norm_2_bias, 1e-12)
    # linear.2  test_rewrite.py:N
    linear_2: f64[2, 3, 8] = F.linear(layer_norm_2, linear_2_weight, linear_2_bias)  # attnres: write stream=0 block=2 sublayer=3
    # norm.3  test_rewrite.py:N
    read_0_3: f64[2, 3, 8] = torch.ops.attnres.depth_attention([x, add, linear_2], key_0_3, 1e-06, 'mean')  # attnres: read 0.3 block=2 sublayer=3
    layer_norm_3: f64[2, 3, 8] = F.layer_norm(read_0_3, (8,), norm_3_weight, norm_3_bias, 1e-12)
    return (layer_norm_3,)
"""


def test_rewrite_of_a_tiny_model() -> None:
    found, _, result = rewritten(tiny, block_size=2)
    assert normalized(graph_text(found.gm)) == BEFORE
    assert normalized(graph_text(result.gm)) == EXPECTED


def test_graph_given_is_not_changed() -> None:
    found, analysis = analysed(tiny, block_size=2)
    text, code = graph_text(found.gm), found.gm.code
    metadata = [dict(node.meta) for node in found.gm.graph.nodes]
    rewrite(found.gm, analysis)
    assert graph_text(found.gm) == text
    assert found.gm.code == code
    assert [node.meta for node in found.gm.graph.nodes] == metadata


@pytest.mark.parametrize("size", [1, 2, 3])
def test_both_ends_keep_the_rules_of_their_level(size: int) -> None:
    found, analysis, result = rewritten(tiny, block_size=size)
    check_level(found.gm, Level.CAPTURED, analysis.plan)
    check_level(result.gm, Level.REWRITTEN, analysis.plan)


def reads_in(result: Any) -> list[Node]:
    return [node for node in result.gm.graph.nodes if is_depth_attention(node)]


def calls_of(gm: torch.fx.GraphModule, name: str) -> list[Node]:
    return [node for node in gm.graph.nodes if node.op == "call_function" and name in str(node.target)]


def test_running_sum_is_gone_and_block_sums_are_explicit() -> None:
    _, _, result = rewritten(tiny, block_size=3)
    sums = [node for node in result.gm.graph.nodes if node.target is torch.add]
    root = next(node for node in result.gm.graph.nodes if node.target == "sinh")
    first, second, third = calls_of(result.gm, "linear")
    assert [node.args for node in sums] == [(first, second), (sums[0], third)]
    assert [list(node.args[0]) for node in reads_in(result)] == [
        [root, first],
        [root, sums[0]],
        [root, sums[1]],
    ]
    assert not [node for node in result.gm.graph.nodes if "add" in str(node.target) and root in node.args]


def test_full_attention_residuals_have_no_sums() -> None:
    _, _, result = rewritten(tiny, block_size=1)
    assert not [node for node in result.gm.graph.nodes if node.target is torch.add]
    assert [len(node.args[0]) for node in reads_in(result)] == [2, 3, 4]


def test_annotations_of_the_nodes() -> None:
    _, _, result = rewritten(tiny, block_size=2)
    annotations = [annotation for node in result.gm.graph.nodes if (annotation := annotation_of(node)) is not None]
    assert annotations == [
        *(Annotation("parameter", 0, read=ReadId(0, read)) for read in (1, 1, 2, 2, 3, 3)),
        *(Annotation("key", 0, read=ReadId(0, read)) for read in (1, 2, 3)),
        Annotation("write", 0, block=1, sublayer=1),
        Annotation("read", 0, block=1, sublayer=1, read=ReadId(0, 1)),
        Annotation("write", 0, block=1, sublayer=2),
        Annotation("read", 0, block=2, sublayer=2, read=ReadId(0, 2)),
        Annotation("write", 0, block=2, sublayer=3),
        Annotation("read", 0, block=2, sublayer=3, read=ReadId(0, 3)),
    ]


def test_appended_placeholders_come_in_read_order_after_the_models_own() -> None:
    found, _, result = rewritten(tiny, block_size=2)
    expected = tuple(ReadParameter(ReadId(0, k), name) for k in (1, 2, 3) for name in ("query", "key_weight"))
    assert result.parameters == expected
    old = [node for node in found.gm.graph.nodes if node.op == "placeholder"]
    new = [node for node in result.gm.graph.nodes if node.op == "placeholder"]
    assert [node.name for node in new[: len(old)]] == [node.name for node in old]
    assert [node._dynamo_source for node in new[: len(old)]] == [node._dynamo_source for node in old]
    assert [node._dynamo_source for node in new[len(old) :]] == [None] * 6


def test_new_nodes_have_the_provenance_of_those_they_stand_for() -> None:
    found, _, result = rewritten(tiny, block_size=2)
    norm, addition = calls_of(found.gm, "norm")[1], calls_of(found.gm, "add")[1]
    read = reads_in(result)[0]
    total = next(node for node in result.gm.graph.nodes if node.target is torch.add)
    assert read.meta["stack_trace"] == norm.meta["stack_trace"]
    assert read.meta["nn_module_stack"] == norm.meta["nn_module_stack"]
    assert total.meta["stack_trace"] == addition.meta["stack_trace"]


@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_options_reach_the_operator(scale: str) -> None:
    _, _, result = rewritten(tiny, block_size=2, scale=scale, eps=1e-3)
    assert {node.args[2:] for node in reads_in(result)} == {(1e-3, scale)}


def test_the_rewrite_brings_the_operators_that_it_puts_into_graphs() -> None:
    """In a process that has loaded nothing else, as ``attnres bench analysis`` runs it."""
    code = "import attnres_passes.rewrite.rewrite, torch; torch.ops.attnres.depth_attention.default"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
