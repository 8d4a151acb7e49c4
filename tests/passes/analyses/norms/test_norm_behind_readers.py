"""Readers around a norm: what follows it, other readers of the read, of inner nodes and of vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnres_passes.analyses.norms.norm_behind import Norm, NotFused, norm_behind, norms_behind
from attnres_passes.ir.levels import is_depth_attention
from tests.passes.analyses.norms.norm_models import (
    NO_NORM,
    WIDTH,
    Stack,
    Written,
    llama,
    named,
    rewritten_model,
    stacked,
    target_of,
    written,
)
from tests.passes.helpers import sample


@pytest.mark.parametrize("after", [F.gelu, torch.relu, lambda y: 2 * y, lambda y: y + y.mean(-1, keepdim=True)])
def test_what_follows_stays_outside(after: Callable[[Tensor], Tensor]) -> None:
    found = written(lambda self, x: after(F.layer_norm(x, (WIDTH,), self.weight, self.bias)))
    assert [target_of(norm.output) for norm in found.norms()] == ["layer_norm"] * 3
    assert {(named(norm.weight), named(norm.bias)) for norm in found.norms()} == {("weight", "bias")}


def test_product_with_another_value_stays_outside() -> None:
    class Gated(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = gate = x.sinh()
            for norm, linear in zip(self.norms, self.linear, strict=True):
                x = x + linear(norm(x) * gate)
            return self.norms[-1](x)

    found = rewritten_model(Gated(*(Written(llama) for _ in range(3))), sample().float(), normed=True)
    assert [tuple(map(target_of, norm.output.users)) for norm in found.norms()] == [("mul",), ("mul",), ("output",)]
    assert {named(norm.weight) for norm in found.norms()} == {"weight"}


def test_vectors_that_are_no_expression_of_vectors_stay_outside() -> None:
    """The second read stands between the first one and its norm, and so does what is made of it."""

    def function(self: Written, x: Tensor) -> Tensor:
        other = (x @ self.matrix).mean((0, 1))
        return F.layer_norm(x, (WIDTH,)) * other * (self.weight.outer(self.bias) @ self.bias)

    verdicts = written(function).verdicts()
    norms = [verdict for verdict in verdicts if isinstance(verdict, Norm)]
    assert len(norms) == 3
    assert {(norm.weight, target_of(norm.output)) for norm in norms} == {(None, "layer_norm")}


def test_vector_that_depends_on_the_read_stays_outside() -> None:
    """The read's first row, through a node that needs a value which is no vector."""
    found = stacked(lambda: nn.LayerNorm(WIDTH, elementwise_affine=False))
    graph = found.gm.graph
    (read, norm), *_ = norms_behind(found.gm, found.plan).items()
    assert isinstance(norm, Norm)
    bias = next(node for node in graph.nodes if node.op == "placeholder" and named(node) == "bias")
    with graph.inserting_after(norm.output):
        product = graph.call_function(torch.mul)
    norm.output.replace_all_uses_with(product)
    with graph.inserting_after(read):
        vector = graph.call_function(torch.mul)
    with graph.inserting_after(read):
        row, number = (graph.call_function(torch.select, (node, 0, 0)) for node in (read, bias))
    for node, args in ((product, (norm.output, vector)), (vector, (row, number))):
        node.args = args
    value = read.meta["example_value"]
    for node, shown in ((product, value), (row, value[0, 0]), (vector, value[0, 0]), (number, value[0, 0, 0])):
        node.meta["example_value"] = shown
    assert norm_behind(read, found.plan) == dataclasses.replace(norm, value_is_used=True)


class TwoNorms(nn.Module):
    """Attention and MLP side by side, each behind a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.right = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.linear = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        for left, right, linear in zip(self.left, self.right, self.linear, strict=True):
            x = x + (linear(left(x)) + linear(right(x)))
        return x.sum()


def test_first_of_two_norms_of_one_value() -> None:
    found = rewritten_model(TwoNorms(), sample().float(), normed=True)
    first, second, *_ = [node for node in found.gm.graph.nodes if is_depth_attention(node)]
    assert first.args[0] == second.args[0]
    assert [(norm.kind, norm.value_is_used) for norm in found.verdicts()[:2]] == [("layer", False), ("rms", False)]
    second.replace_all_uses_with(first)
    norm = norm_behind(first, found.plan)
    assert isinstance(norm, Norm)
    assert (norm.kind, norm.value_is_used, len(norm.inner)) == ("layer", True, 1)
    assert norm_behind(second, found.plan) == NotFused(NO_NORM)


def test_value_that_is_returned_is_used() -> None:
    found = stacked(lambda: nn.LayerNorm(WIDTH))
    read, *_ = norms = norms_behind(found.gm, found.plan)
    output = next(node for node in found.gm.graph.nodes if node.op == "output")
    output.args = ((*output.args[0], read),)
    after = norms_behind(found.gm, found.plan)
    assert after == {**norms, read: dataclasses.replace(norms[read], value_is_used=True)}


def test_vector_read_by_another_before_the_norm() -> None:
    found = stacked(lambda: nn.LayerNorm(WIDTH))
    (read, norm), *_ = norms_behind(found.gm, found.plan).items()
    assert isinstance(norm, Norm)
    with found.gm.graph.inserting_after(read):
        found.gm.graph.call_method("mul_", (norm.weight, 2.0))
    reason = "a vector of the norm has another reader between the read and the norm"
    assert norm_behind(read, found.plan) == NotFused(reason)
