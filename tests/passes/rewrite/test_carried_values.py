"""A stream that goes on through factors, against the same model with attention residuals written by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnres_compile as ac
from tests.passes.helpers import Function, added_parameters, analysed, assert_same, randomised, rewritten, sample
from tests.passes.rewrite.hand_written import KINDS, LAYERS, WIDTH, Scaled, simulated


def example() -> Tensor:
    return sample(2, 3, WIDTH)


@pytest.mark.parametrize("name", KINDS)
def test_stream_is_found_whole(name: str) -> None:
    plan = analysed(Scaled(KINDS[name]), example(), block_size=2)[1].plan
    (stream,) = plan.streams
    injected = LAYERS if KINDS[name].injected else 0
    assert len(stream.writes) == LAYERS + injected
    assert all(read.normed for read in stream.reads if read.state > 0)
    assert plan.declined == ()
    assert not plan.partial


@pytest.mark.parametrize("scale", ["mean", "sum"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_compiled_rewrite_equals_the_form_written_by_hand(name: str, size: int, scale: str) -> None:
    """Output, and gradients of the input, of every parameter, of queries and of key norms."""
    torch._dynamo.reset()
    model, x = Scaled(KINDS[name]), example()
    ac.prepare(model, (x,), block_size=size, scale=scale)
    added = randomised(model)
    model.compile(backend="attnres", options={"inner": "aot_eager"})
    parameters = list(model.parameters())

    def outcome(output: Tensor, given: Tensor) -> list[Tensor | None]:
        loss = ((output - 0.3) ** 3).sum()
        return [output, *torch.autograd.grad(loss, [given, *parameters], allow_unused=True)]

    given = x.clone().requires_grad_()
    actual = outcome(model(given), given)
    given = x.clone().requires_grad_()
    with ac.plain(model):
        expected = outcome(simulated(model, given, added, block_size=size, eps=1e-6, scale=scale), given)
    assert_same(actual, expected, 1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_zero_queries_give_back_the_original_and_verify_passes(name: str) -> None:
    torch._dynamo.reset()
    model, x = Scaled(KINDS[name]), example()
    expected = model(x)
    assert ac.verify(model, (x,)).passed
    ac.prepare(model, (x,), block_size=2, scale="sum")
    model.compile(backend="attnres", options={"inner": "aot_eager"})
    assert_same([model(x)], [expected], 1e-10)


# A read of one state that takes the stream before and behind a step that carries it on.


def statistics_before_dropout(self: Function, x: Tensor) -> Tensor:
    for linear in self.linear:
        y = F.dropout(x, 0.3)
        x = y + torch.tanh(linear(y * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-9)))
    return self.norm[-1](x)


def gradient_stopped_in_the_stream(self: Function, x: Tensor) -> Tensor:
    for linear in self.linear:
        y = x.detach()
        x = y + torch.tanh(linear(x * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-9)))
    return self.norm[-1](x)


def statistics_in_the_other_layout(self: Function, x: Tensor) -> Tensor:
    for linear in self.linear:
        y = x.transpose(0, 1)
        x = y + torch.tanh(linear(y * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-9).transpose(0, 1)))
    return self.norm[-1](x)


def statistics_before_a_factor(self: Function, x: Tensor) -> Tensor:
    for linear in self.linear:
        y = 0.5 * x
        x = y + torch.tanh(linear(y * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-9)))
    return self.norm[-1](x)


def statistics_before_a_reshape_and_a_factor(self: Function, x: Tensor) -> Tensor:
    for linear in self.linear:
        y = x.reshape(-1, x.shape[-1]) * 0.5
        statistic = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-9).reshape(-1, 1)
        x = (y + torch.tanh(linear(y * statistic))).view(x.shape)
    return self.norm[-1](x)


ACROSS = [
    statistics_before_dropout,
    gradient_stopped_in_the_stream,
    statistics_in_the_other_layout,
    statistics_before_a_factor,
    statistics_before_a_reshape_and_a_factor,
]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("model", ACROSS, ids=lambda model: model.__name__)
def test_read_before_and_behind_a_step(model, size: int) -> None:
    from tests.passes.rewrite.test_rewrite_values import assert_zero_query_identity

    assert_zero_query_identity(model, sample(3, 3, 8), block_size=size)


def test_read_behind_a_step_is_the_read_before_it_carried_on() -> None:
    """One attention for both, with random queries: what is read behind the factor has the same weights."""
    found, analysis, result = rewritten(statistics_before_a_factor, block_size=1, eps=1e-5)
    added = added_parameters(result, analysis, seed=3)
    model, values = Function(statistics_before_a_factor), iter(added)
    sources = [sample()]
    for linear in model.linear:
        read = _depth_attention(sources, values)
        y = 0.5 * read
        branch = torch.tanh(linear(y * torch.rsqrt(read.pow(2).mean(-1, keepdim=True) + 1e-9)))
        sources = [*(0.5 * source for source in sources), branch]
    expected = model.norm[-1](_depth_attention(sources, values))
    assert_same([result.gm(*found.inputs, *added)[0]], [expected], 1e-10)


def _depth_attention(sources: list[Tensor], parameters) -> Tensor:
    if len(sources) == 1:
        return sources[0]
    query, weight = next(parameters), next(parameters)
    stacked = torch.stack(sources)
    keys = stacked * torch.rsqrt(stacked.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
    return ((keys @ query).softmax(0).unsqueeze(-1) * stacked).sum(0)
