"""Declines of candidate streams: every reason, where it points, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_passes.ir.plan import Decline, Reason
from tests.passes.helpers import WIDTH, Function, analysed, line_of, only_decline, only_stream, sample

# Each model marks the line that its decline has to point at.


def post_norm(self: Function, x: Tensor) -> Tensor:
    for norm, linear in zip(self.norm, self.linear, strict=False):
        x = norm(x + linear(x))  # here
    return x


def unnormed(self: Function, x: Tensor) -> Tensor:
    x = x + self.linear[0](self.norm[0](x))
    branch = F.gelu(x)  # here
    x = x + self.linear[1](branch)
    return self.norm[-1](x)


def unnormed_in_a_module(self: Function, x: Tensor) -> Tensor:
    x = x + self.linear[0](self.norm[0](x))
    x = x + self.linear[1](x)  # here
    return self.norm[-1](x)


def channels_first(self: Function, x: Tensor) -> Tensor:
    x = x * 1.5
    for _ in range(2):
        normed = F.group_norm(x, 1)  # here
        x = x + F.conv1d(normed, self.linear[0].weight[:3, :3, None])
    return x.mean(-1)


def too_few_writes(self: Function, x: Tensor) -> Tensor:
    x = x + self.linear[0](self.norm[0](x))  # here
    return self.norm[1](x)


def no_residual(self: Function, x: Tensor) -> Tensor:
    return self.linear[1](self.linear[0](x).relu())


def non_floating(self: Function, x: Tensor) -> Tensor:
    tokens = x.long()
    for _ in range(3):
        tokens = tokens + tokens.abs() % 3  # here
    return tokens


def forked(self: Function, x: Tensor) -> Tensor:
    x = x + self.linear[0](self.norm[0](x))
    side = x + self.linear[1](self.norm[1](x)).sin()  # here
    for norm, linear in zip(self.norm[1:], self.linear[1:], strict=False):
        x = x + linear(norm(x))
    return self.norm[-1](x) + self.norm[-1](side)


def opaque(self: Function, x: Tensor) -> Tensor:
    x = x * 1.5
    flat = x.view(-1, WIDTH)  # here
    x.add_(self.linear[0](self.norm[0](x)))
    x = x + self.linear[1](self.norm[1](x))
    return self.norm[-1](x) + self.norm[-1](flat.view(2, 3, WIDTH))


def hooked(self: Function, x: Tensor) -> Tensor:
    for norm, linear in zip(self.norm, self.linear, strict=False):
        x = x + linear(norm(x))
        x.register_hook(lambda gradient: gradient * 0.5)  # here
    return self.norm[-1](x)


def polynomial(self: Function, x: Tensor) -> Tensor:
    y = self.linear[0](x)
    z = y + 0.1 * y * y  # here
    z = z + 0.01 * y * y * y
    return self.linear[1](self.norm[0](z))


def sum_of_projections(self: Function, x: Tensor) -> Tensor:
    y = self.norm[0](self.linear[0](x))
    z = y + self.linear[1](y)  # here
    z = z + self.linear[2](y)
    return self.norm[1](z)


def recurrence(self: Function, x: Tensor) -> Tensor:
    state, inputs = x[:, 0] * 1.5, self.linear[0](x)
    for t in range(x.shape[1]):
        state = state + torch.tanh(self.linear[1](self.norm[0](state)) + inputs[:, t])  # here
    return self.norm[-1](state)


def clamped(self: Function, x: Tensor) -> Tensor:
    for norm, linear in zip(self.norm, self.linear, strict=False):
        x = x + linear(norm(x))
        x = x.clamp(-60000.0, 60000.0)  # here
    return self.norm[-1](x)


def interrupted(self: Function, x: Tensor) -> Tensor:
    for norm, linear in zip(self.norm, self.linear, strict=False):
        x = torch.relu(x + linear(norm(x)))  # here
    return self.norm[-1](x)


def gated(self: Function, x: Tensor) -> Tensor:
    for norm, linear in zip(self.norm, self.linear, strict=False):
        gate = torch.sigmoid(linear(norm(x)))
        x = gate * x + (1 - gate) * torch.tanh(linear(norm(x)))  # here
    return self.norm[-1](x)


def gated_behind_a_shift(self: Function, x: Tensor) -> Tensor:
    """The gate is made behind an addition, so that it looks newer than the sum that it is multiplied by."""
    for k, (norm, linear) in enumerate(zip(self.norm[:2], self.linear, strict=False)):
        y = norm(x) if k == 0 else norm(x) + linear.bias
        gate = torch.sigmoid(self.linear[0](y))
        x = gate * x + (1 - gate) * torch.tanh(linear(y))  # here
    return self.norm[-1](x)


def lerped(self: Function, x: Tensor) -> Tensor:
    for norm, linear in zip(self.norm, self.linear, strict=False):
        x = torch.lerp(x, linear(norm(x)), 0.3)  # here
    return self.norm[-1](x)


def hyper_connected(self: Function, x: Tensor) -> Tensor:
    lanes = x.unsqueeze(2).expand(-1, -1, 2, -1)
    for norm, linear in zip(self.norm, self.linear, strict=False):
        weights = torch.softmax(linear(norm(lanes))[..., :2], -1)
        branch = linear(norm((weights[..., :1] * lanes).sum(2)))
        mixed = torch.matmul(weights, lanes)
        lanes = mixed + weights[..., :1] * branch.unsqueeze(2)  # here
    return self.norm[-1](lanes.sum(2))


def hyper_connected_without_mixing(self: Function, x: Tensor) -> Tensor:
    lanes = x.unsqueeze(2).expand(-1, -1, 2, -1)
    for norm, linear in zip(self.norm, self.linear, strict=False):
        weights = torch.sigmoid(linear(norm(lanes))[..., :1])
        branch = linear(norm((weights * lanes).sum(2)))
        written = weights * branch.unsqueeze(2)  # here
        lanes = written + lanes
    return self.norm[-1](lanes.sum(2))


def hyper_connected_side_by_side(self: Function, x: Tensor) -> Tensor:
    """Two lanes of half the width each, in one axis."""
    for norm, linear in zip(self.norm, self.linear, strict=False):
        y = norm(x)
        weights = torch.sigmoid(linear(y)[..., :2])
        branch = linear(y)[..., ::2]
        x = x + (weights.unsqueeze(-1) * branch.unsqueeze(-2)).flatten(-2)  # here
    return self.norm[-1](x)


def alternating_updates(self: Function, x: Tensor) -> Tensor:
    lanes = torch.stack([x, 2 * x])
    for norm, linear in zip(self.norm, self.linear, strict=False):
        weights = linear(norm(lanes[0]))[..., :4].unflatten(-1, (2, 2))
        predicted = lanes + torch.matmul(lanes.permute(1, 2, 3, 0), weights).permute(3, 0, 1, 2)  # here
        lanes = predicted + linear(norm(predicted[0]))
    return self.norm[-1](lanes[0])


def reversible(self: Function, x: Tensor) -> Tensor:
    x = y = x * 1.5
    for norm, linear in zip(self.norm, self.linear, strict=False):
        x = x + linear(norm(y))
        y = y + linear(norm(x))  # here
    return self.norm[-1](x + y)


def attends_over_depth(self: Function, x: Tensor) -> Tensor:
    sources = [x * 1.5]
    for linear in self.linear:
        stacked = torch.stack(sources)  # here
        weights = torch.softmax(self.norm[0](stacked) @ linear.bias, 0)
        sources.append(linear(self.norm[1]((weights.unsqueeze(-1) * stacked).sum(0))))
    stacked = torch.stack(sources)
    return self.norm[-1]((torch.softmax(stacked @ self.linear[0].bias, 0).unsqueeze(-1) * stacked).sum(0))


def changes_input(self: Function, x: Tensor) -> Tensor:
    for norm, linear in zip(self.norm, self.linear, strict=False):
        x += linear(norm(x))  # here
    return self.norm[-1](x)


DECLINED: list[tuple[Callable[..., Any], Reason, str]] = [
    (post_norm, Reason.POST_NORM, "PreNorm"),
    (unnormed, Reason.UNNORMED_READ, "allow_unnormed=True"),
    (unnormed_in_a_module, Reason.UNNORMED_READ, "allow_unnormed=True"),
    (channels_first, Reason.CHANNELS_FIRST, "channels-last"),
    (too_few_writes, Reason.TOO_FEW_WRITES, "2 writes"),
    (non_floating, Reason.NON_FLOATING, "torch.int64"),
    (forked, Reason.FORKED, "same state"),
    (opaque, Reason.OPAQUE, "plain addition"),
    (changes_input, Reason.OPAQUE, "plain addition"),
    (hooked, Reason.GRADIENT_HOOK, "output of a sublayer"),
    (polynomial, Reason.NO_SUBLAYER, "polynomial"),
    (sum_of_projections, Reason.INSIDE_SUBLAYER, "inside of one sublayer"),
    (recurrence, Reason.RECURRENCE, "over time"),
    (clamped, Reason.CLAMPED, "bfloat16"),
    (interrupted, Reason.INTERRUPTED, "aten.relu"),
    (gated, Reason.GATED, "gate"),
    (gated_behind_a_shift, Reason.GATED, "gate"),
    (lerped, Reason.OTHER_SUM, "x + f"),
    (alternating_updates, Reason.LANES, "2 lanes"),
    (hyper_connected, Reason.LANES, "hyper-connections"),
    (hyper_connected_side_by_side, Reason.LANES, "hyper-connections"),
    (hyper_connected_without_mixing, Reason.LANES, "hyper-connections"),
    (reversible, Reason.REVERSIBLE, "reversible"),
    (attends_over_depth, Reason.DEPTH_ATTENTION, "already"),
]


@pytest.mark.parametrize(("model", "reason", "advice"), DECLINED)
def test_decline_has_its_reason_and_its_message(model: Callable[..., Any], reason: Reason, advice: str) -> None:
    decline = only_decline(analysed(model)[1])
    assert decline.reason is reason
    assert advice in decline.message


@pytest.mark.parametrize(("model", "reason", "advice"), DECLINED)
def test_decline_points_at_the_line_of_the_model(model: Callable[..., Any], reason: Reason, advice: str) -> None:
    decline = only_decline(analysed(model)[1])
    file, line = decline.source.rsplit(":", 1)
    assert file == __file__
    assert int(line) == line_of(model, "# here")


ADVICE = (
    "use ",
    "keep ",
    "norm ",
    "pass ",
    "write ",
    "turn ",
    "give ",
    "make ",
    "choose ",
    "leave ",
    "add ",
    "return ",
    "take ",
    "move ",
    "run ",
)


@pytest.mark.parametrize(("model", "reason", "advice"), [*DECLINED, (no_residual, Reason.NO_RESIDUAL, "")])
def test_decline_ends_with_what_to_do(model: Callable[..., Any], reason: Reason, advice: str) -> None:
    """A person who reads a decline learns how to get her model rewritten, or that nothing can be done."""
    message = only_decline(analysed(model)[1]).message.lower()
    last = message.replace(";", ".").rstrip(".").rsplit(". ", 1)[-1].strip()
    assert last.startswith(ADVICE), message


def test_every_reason_is_produced() -> None:
    produced = {reason for _, reason, _ in DECLINED} | {Reason.NO_RESIDUAL, Reason.NOT_SELECTED}
    assert produced == set(Reason)


def test_model_without_any_residual_says_so() -> None:
    decline = only_decline(analysed(no_residual)[1])
    assert decline.reason is Reason.NO_RESIDUAL
    assert decline.writes == 0


def test_model_hidden_in_an_opaque_operator_says_so() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))  # here

    decline = only_decline(analysed(model)[1])
    assert decline.reason is Reason.OPAQUE
    assert "cond hides part of the model" in decline.message
    assert decline.source == f"{__file__}:{line_of(model, '# here')}"


def test_decline_counts_the_additions() -> None:
    assert only_decline(analysed(unnormed)[1]).writes == 2
    assert only_decline(analysed(non_floating)[1]).writes == 3


def test_single_additions_of_one_reason_are_reported_together() -> None:
    decline = only_decline(analysed(post_norm)[1])
    assert decline.writes == 3
    assert "(3 such additions)" in decline.message


def test_chains_of_polynomials_are_not_reported_beside_a_stream() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            y = linear(norm(x))
            x = x + (y + 0.04 * y**3 + 0.1 * y**5)
        return self.norm[-1](x)

    assert analysed(model)[1].plan.declined == ()


def test_declined_stream_is_reported_beside_an_accepted_one() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        for linear in self.linear:
            y = y + linear(y)
        return self.norm[-1](x), self.norm[-1](y)

    plan = analysed(model, sample(), sample(seed=2))[1].plan
    assert len(plan.streams) == 1
    assert [(decline.reason, decline.writes) for decline in plan.declined] == [(Reason.UNNORMED_READ, 3)]


def test_decline_of_a_nested_module_carries_its_path() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList(Inner() for _ in range(3))
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            for inner in self.inner:
                x = inner(x)
            return x

    decline: Decline = only_decline(analysed(Outer())[1])
    assert decline.reason is Reason.UNNORMED_READ
    assert decline.module == "inner.1.linear"
    assert decline.source == f"{__file__}:{line_of(Inner.forward, 'return x + self.linear(x)')}"


def test_allow_unnormed_accepts_reads_that_feed_a_write() -> None:
    stream = only_stream(analysed(unnormed, allow_unnormed=True)[1])
    assert [(read.state, read.normed) for read in stream.reads] == [(0, True), (1, False), (2, True)]


def test_unnormed_read_of_the_root_alone_is_accepted() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x + self.linear[0](x)
        x = x + self.linear[1](self.norm[1](x))
        return self.norm[-1](x)

    stream = only_stream(analysed(model)[1])
    assert [(read.state, read.normed) for read in stream.reads] == [(0, False), (1, True), (2, True)]


# Streams that look rewritable and whose rewrite would not compute the same.


def test_large_eps_is_declined() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for linear in self.linear:
            x = x + linear(F.layer_norm(x, (WIDTH,), eps=10.0))
        return self.norm[-1](x)

    assert only_decline(analysed(model)[1]).reason is Reason.UNNORMED_READ


def test_attention_bias_made_of_the_raw_state_is_declined() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            heads = norm(x).float().unsqueeze(1)
            bias = (x @ x.transpose(1, 2)).float().unsqueeze(1)
            attended = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=bias)
            x = x + linear(attended.squeeze(1).double())
        return self.norm[-1](x)

    # The fused kernels are taken for masks that need no gradient.
    frozen = Function(model).requires_grad_(False)
    assert only_decline(analysed(frozen)[1]).reason is Reason.UNNORMED_READ
