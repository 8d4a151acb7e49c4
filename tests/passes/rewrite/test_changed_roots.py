"""A stream that begins with a tensor that is changed in place first, as embeddings are at the places of an image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnres_compile as ac
from tests.passes.helpers import WIDTH, Function, analysed, assert_same, randomised, rewritten, sample

ROWS = torch.tensor([[False, True, False], [True, False, True]])


def by_row(x: Tensor) -> Tensor:
    x = x.sinh()
    x[:, 0] = 1.0
    return x


def by_mask(x: Tensor) -> Tensor:
    x = x.sinh()
    x[ROWS] = x.new_full((WIDTH,), 0.5)
    return x


def through_a_view(x: Tensor) -> Tensor:
    x = x.sinh()
    x[:, 1].mul_(2.0)
    return x


def twice(x: Tensor) -> Tensor:
    return by_row(by_mask(x))


def dropped_out(x: Tensor) -> Tensor:
    """What a model in eval gives on is the very tensor that was changed."""
    return F.dropout(by_row(x), 0.0, False)


def looked_at_before(x: Tensor) -> tuple[Tensor, Tensor]:
    """Between the change and a node that gives the tensor, something else is made of it."""
    x = by_row(x)
    other = x.cos().sum()
    return F.dropout(x, 0.0, False), other


def named_twice(x: Tensor) -> Tensor:
    """The value before the change is used, too, and is another one."""
    y = x.sinh()
    before = y.sum(-1, keepdim=True)
    y[:, 0] = 1.0
    y.mul_(1 + 0 * before)
    return y


Root = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
ROOTS: tuple[Root, ...] = (by_row, by_mask, through_a_view, twice, dropped_out, looked_at_before, named_twice)


def begun(root: Root, x: Tensor) -> tuple[Tensor, Tensor]:
    """``s_0``, and what else was made of it."""
    found = root(x)
    return found if isinstance(found, tuple) else (found, x.new_ones(()))


def stack(root: Root) -> Callable[[Function, Tensor], Tensor]:
    def model(self: Function, x: Tensor) -> Tensor:
        x, other = begun(root, x)
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x)).tanh()
        return self.norm[-1](x) * other

    return model


def by_hand(model: Function, root: Root, x: Tensor, added: list[Tensor]) -> Tensor:
    """Blocks of one write; a query and a key weight for each read behind the first."""
    first, other = begun(root, x)
    sources, eps = [first], 1e-6
    for k, norm in enumerate(model.norm):
        read = sources[0]
        if k > 0:
            stacked = torch.stack(sources)
            query, weight = added[2 * (k - 1) : 2 * k]
            keys = stacked * torch.rsqrt(stacked.pow(2).mean(-1, keepdim=True) + eps) * weight
            read = (torch.softmax(keys @ query, 0).unsqueeze(-1) * stacked).sum(0)
        if k == len(model.linear):
            return model.norm[-1](read) * other
        sources.append(model.linear[k](norm(read)).tanh())
    raise AssertionError


@pytest.mark.parametrize("root", ROOTS)
def test_rewrite_equals_the_form_written_by_hand(root: Root) -> None:
    """Output, and gradients of the input, of every parameter, of queries and of key norms."""
    torch._dynamo.reset()
    model, x = Function(stack(root)), sample()
    assert len(ac.prepare(model, (x,), block_size=1).streams) == 1
    added = randomised(model)
    model.compile(backend="attnres", options={"inner": "aot_eager"})
    parameters = list(model.parameters())

    def outcome(function: Root) -> list[Tensor | None]:
        given = x.clone().requires_grad_()
        output = function(given)
        return [output, *torch.autograd.grad(((output - 0.3) ** 3).sum(), [given, *parameters], allow_unused=True)]

    assert_same(outcome(model), outcome(lambda given: by_hand(model, root, given, added)), 1e-9)


@pytest.mark.parametrize("root", ROOTS)
def test_the_root_stands_behind_the_change(root: Root) -> None:
    """What cuts a graph behind its root, as stages and sharded sequences do, cuts behind the change."""
    _, analysis, result = rewritten(stack(root), block_size=1)
    (stream,) = result.streams
    order = list(result.gm.graph.nodes)
    changes = [k for k, node in enumerate(order) if "setitem" in str(node.target) or str(node.target).endswith("mul_")]
    assert changes
    assert max(changes) <= order.index(stream.root)
    assert len(analysis.plan.streams[0].writes) == 3


def test_verify_passes() -> None:
    torch._dynamo.reset()
    assert ac.verify(Function(stack(dropped_out)), (sample(),)).passed


def test_a_state_that_is_changed_in_place_begins_no_stream() -> None:
    """What is behind it would be a part of the stream that runs through the model."""

    def model(self: Function, x: Tensor) -> Tensor:
        x = x.sinh()
        for k, (norm, linear) in enumerate(zip(self.norm, self.linear, strict=False)):
            x = x + linear(norm(x)).tanh()
            if k == 0:
                x[:, 0] = x[:, 0] + 1.0
        return self.norm[-1](x)

    plan = analysed(model)[1].plan
    assert plan.streams == ()
    assert any("changed in place there, between two of its additions" in one.message for one in plan.declined)


def test_an_input_of_the_graph_that_is_changed_is_declined() -> None:
    def changed(x: Tensor) -> Tensor:
        x[:, 0] = 1.0
        return x

    assert analysed(stack(changed))[1].plan.streams == ()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


class AddsItsRootAgain(nn.Module):
    """The trace meets the changed tensor first in one layer or the other, which says nothing of where it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(2)), nn.LayerNorm(WIDTH)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        root = by_row(x)
        x = self.layers[0](root)
        x = self.layers[1](x + root)
        return self.norm(x)


@pytest.mark.parametrize("differentiates", [False, True])
def test_a_graph_is_that_of_its_plan_whatever_meets_the_changed_tensor_first(differentiates: bool) -> None:
    torch._dynamo.reset()
    model, x = AddsItsRootAgain(), sample()
    with torch.no_grad():
        plan = ac.prepare(model, (x,), block_size=1)
    assert [write.module for write in plan.streams[0].writes] == ["layers.0.linear", "", "layers.1.linear"]
    model.compile(backend="attnres", options={"inner": "eager"})
    model(x.clone().requires_grad_(differentiates))
    assert ac.status(model).state == "rewritten"
