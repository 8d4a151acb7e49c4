"""Chains that are no residual stream, wherever they stand, and streams that look like them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_passes.ir.plan import Plan, Reason
from tests.passes.helpers import WIDTH, Function, analysed, sample

Branch = Callable[[Function, int, Tensor], Tensor]


def plan_of(model: Callable[..., Any] | nn.Module, *args: Tensor, layers: int = 9) -> Plan:
    return analysed(model, *args, layers=layers, block_size=1)[1].plan


def prenorm(branch: Branch) -> Callable[..., Tensor]:
    """Three sublayers behind a norm each."""

    def model(self: Function, x: Tensor) -> Tensor:
        x = x * 1.5
        for k in range(3):
            x = x + branch(self, k, self.norm[k](x))
        return self.norm[-1](x)

    return model


def polynomial(self: Function, k: int, x: Tensor) -> Tensor:
    y = self.linear[k](x)
    z = y + 0.1 * y * y
    z = z + 0.01 * y * y * y
    return self.linear[k + 3](self.norm[k + 3](z))


def projections(self: Function, k: int, x: Tensor) -> Tensor:
    return self.linear[8](self.norm[8](x + self.linear[k](x) + self.linear[k + 3](x)))


def convolutions(self: Function, k: int, x: Tensor) -> Tensor:
    y = self.linear[k](x)

    def convolved(size: int) -> Tensor:
        kernel = self.linear[k + 3].weight[..., None].expand(-1, -1, size) / size
        return F.conv1d(y.transpose(1, 2), kernel, padding=size // 2).transpose(1, 2)

    return torch.tanh(self.norm[k + 3](y + convolved(1) + convolved(3)))


def recurrence(self: Function, k: int, x: Tensor) -> Tensor:
    y = self.linear[k](x)
    state, states = y[:, 0] * 1.5, []
    for t in range(y.shape[1]):
        state = state + torch.tanh(self.linear[k + 3](self.norm[k + 3](state)) + y[:, t])
        states.append(state)
    return torch.stack(states, 1)


def delta_rule(self: Function, k: int, x: Tensor) -> Tensor:
    keys, values = self.linear[k](x), self.linear[k + 3](x)
    state = x.new_zeros(x.shape[0], WIDTH, WIDTH)
    read = []
    for t in range(x.shape[1]):
        key, value = keys[:, t, :, None], values[:, t, None]
        state = 0.9 * state + key * (value - (key.transpose(1, 2) @ state))
        read.append((key.transpose(1, 2) @ state).squeeze(1))
    return torch.stack(read, 1)


def stack(self: Function, k: int, x: Tensor) -> Tensor:
    for j in range(3, 6):
        x = x + self.linear[j](self.norm[j](x))
    return self.linear[k](self.norm[k + 6](x))


INSIDE = [polynomial, projections, convolutions, recurrence, delta_rule, stack]


@pytest.mark.parametrize("branch", INSIDE, ids=lambda branch: branch.__name__)
def test_sum_inside_a_sublayer_is_left_alone_and_the_stream_around_it_found(branch: Branch) -> None:
    plan = plan_of(prenorm(branch))
    assert [len(stream.writes) for stream in plan.streams] == [3]
    assert plan.declined == ()
    assert not plan.partial


@pytest.mark.parametrize("branch", [polynomial, convolutions], ids=lambda branch: branch.__name__)
def test_sum_inside_a_postnorm_sublayer_is_no_stream(branch: Branch) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            x = self.norm[k](x + branch(self, k, x))
        return x

    plan = plan_of(model)
    assert plan.streams == ()
    assert {decline.reason for decline in plan.declined} == {Reason.POST_NORM}


def test_stack_of_prenorm_sublayers_between_unnormed_additions_is_the_stream() -> None:
    """The steps of a solver are no sublayers: what is in each is a model of its own."""

    def model(self: Function, x: Tensor) -> Tensor:
        for _ in range(2):
            y = self.linear[8](x)
            for k in range(3):
                y = y + self.linear[k](self.norm[k](y))
            x = x + self.linear[7](self.norm[8](y))
        return self.norm[-1](x)

    assert [len(stream.writes) for stream in plan_of(model).streams] == [3, 3]


def test_one_layer_of_parallel_sublayers_is_a_stream() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        y = self.norm[0](x)
        return self.norm[1](x + self.linear[0](y) + self.linear[1](y))

    assert [len(stream.writes) for stream in plan_of(model).streams] == [2]


def looped(self: Function, x: Tensor) -> Tensor:
    """Shared weights, and all of the input in every loop."""
    x = inputs = x * 1.5
    for _ in range(4):
        x = x + self.linear[0](self.norm[0](x)) + inputs
    return self.norm[-1](x)


def looped_on_a_part(self: Function, x: Tensor) -> Tensor:
    """Shared weights, and the same part of the input in every loop."""
    inputs = x * 1.5
    x = inputs.sin()
    for _ in range(4):
        x = x + self.linear[0](self.norm[0](x)) * inputs[:, :1]
    return self.norm[-1](x)


class Steps(Function):
    """Shared weights, and one row of a table of parameters in each loop."""

    def __init__(self) -> None:
        super().__init__(lambda self, x: x)
        self.steps = nn.Parameter(sample(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        for step in range(4):
            x = x + self.linear[0](self.norm[0](x) + self.steps[step])
        return self.norm[-1](x)


def parts_of_an_input(self: Function, x: Tensor) -> Tensor:
    """Weights of its own for each layer, and a part of what was computed for all."""
    parts = self.linear[8](x)
    x = x * 1.5
    for k in range(3):
        x = x + self.linear[k](self.norm[k](x) * parts[:, k : k + 1])
    return self.norm[-1](x)


@pytest.mark.parametrize(
    "model",
    [looped, looped_on_a_part, Steps(), parts_of_an_input],
    ids=["looped", "looped on a part", "steps", "parts"],
)
def test_streams_that_look_like_a_recurrence(model: Callable[..., Any] | nn.Module) -> None:
    plan = plan_of(model)
    assert len(plan.streams) == 1
    assert plan.declined == ()


@pytest.mark.parametrize("take", ["index", "unbind", "split"])
def test_recurrence_is_seen_however_positions_are_taken(take: str) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        y = self.linear[0](x)
        parts = {
            "index": lambda: [y[:, t] for t in range(3)],
            "unbind": lambda: y.unbind(1),
            "split": lambda: [part.squeeze(1) for part in y.split(1, 1)],
        }[take]()
        state = x[:, 0] * 1.5
        for part in parts:
            state = state + torch.tanh(self.linear[1](self.norm[0](state)) + part)
        return self.norm[-1](state)

    (decline,) = plan_of(model).declined
    assert decline.reason is Reason.RECURRENCE


# Features on another axis.


def along_first(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def along_first_by_variance(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt()


def along_all(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean((1, 2), keepdim=True) + 1e-6)


NORMS = [along_first, along_first_by_variance, along_all, lambda x: F.normalize(x, dim=1)]
LEFT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda w, x: w @ x,
    "einsum": lambda w, x: torch.einsum("oc,bct->bot", w, x),
    "bmm": lambda w, x: torch.bmm(w.expand(2, -1, -1), x),
    "baddbmm": lambda w, x: torch.baddbmm(torch.zeros_like(x), w.expand(2, -1, -1), x),
    "transposed": lambda w, x: (x.transpose(1, 2) @ w).transpose(1, 2),
    "convolution": lambda w, x: F.conv1d(x, w[..., None]),
}


@pytest.mark.parametrize("norm", NORMS, ids=["mean", "var", "all", "normalize"])
@pytest.mark.parametrize("product", LEFT)
def test_features_on_axis_1_are_declined(product: str, norm: Callable[[Tensor], Tensor]) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x * 1.5
        for k in range(3):
            x = x + torch.tanh(LEFT[product](self.linear[k].weight, norm(x)))
        return norm(x).mean(-1)

    plan = plan_of(model, sample(2, WIDTH, 5))
    assert plan.streams == ()
    assert [decline.reason for decline in plan.declined] == [Reason.CHANNELS_FIRST]


@pytest.mark.parametrize("product", ["matmul", "einsum", "bmm", "transposed"])
def test_products_over_tokens_beside_ones_over_features_are_no_sign(product: str) -> None:
    """A mixer: tokens are mixed by a product from the left, features by one from the right."""

    def model(self: Function, x: Tensor, w: Tensor) -> Tensor:
        x = x * 1.5
        for k in range(3):
            x = x + torch.tanh(LEFT[product](w, self.norm[k](x)))
            x = x + self.linear[k](self.norm[k + 3](x))
        return self.norm[-1](x).mean(1)

    assert [len(stream.writes) for stream in plan_of(model, sample(2, 5, WIDTH), sample(5, 5)).streams] == [6]


def test_features_that_are_normed_over_time_stay_features() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            x = x + self.linear[k](along_first(x))
        return self.norm[-1](x)

    assert len(plan_of(model, sample(2, 5, WIDTH)).streams) == 1


# Models that have something else in place of a stream.


def test_one_output_weighed_by_token_is_no_write_to_lanes() -> None:
    """A pooled vector, added to each token by a gate of its own: an outer product over tokens."""

    def gated_pool(self: Any, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            normed = norm(x)
            x = x + torch.sigmoid(linear(normed)[..., :1]) * linear(normed.mean(1, keepdim=True))
        return self.norm[-1](x)

    plan = plan_of(gated_pool)
    assert not plan.declined
    assert len(plan.streams) == 1


def test_hyper_connections_are_named() -> None:
    from tests.passes.analyses.test_declines import hyper_connected

    plan = plan_of(hyper_connected)
    assert plan.streams == ()
    assert plan.declined[0].reason is Reason.LANES


def test_attention_over_depth_is_named() -> None:
    from tests.passes.analyses.test_declines import attends_over_depth

    plan = plan_of(attends_over_depth)
    assert plan.streams == ()
    assert plan.declined[0].reason is Reason.DEPTH_ATTENTION


def test_attention_over_tokens_of_growing_number_in_one_layer_is_not() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            y = torch.cat([self.norm[k](x), self.norm[k](x)], 1)
            x = self.linear[k](torch.softmax(y @ y.transpose(1, 2), -1) @ y)[:, :3]
        return x

    assert {decline.reason for decline in plan_of(model).declined} == {Reason.NO_RESIDUAL}


# Reads without a norm that lead to a sublayer, however it is added.


@pytest.mark.parametrize("layers", [1, 2])
def test_unnormed_read_that_another_stack_begins_with(layers: int) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            x = x + self.linear[k](self.norm[k](x))
        y = F.gelu(self.linear[8](x))
        for k in range(layers):
            y = y + self.linear[k + 3](self.norm[k + 3](y))
        return self.norm[-1](y)

    plan = plan_of(model)
    assert [len(stream.writes) for stream in plan.streams] == ([] if layers == 1 else [2])
    assert plan.declined[0].reason is Reason.UNNORMED_READ


LAST: dict[str, Callable[[Function, Tensor, Tensor], Tensor]] = {
    "sub": lambda self, x, f: x - f,
    "alpha": lambda self, x, f: torch.add(x, f, alpha=0.5),
    "lerp": lambda self, x, f: torch.lerp(x, f, 0.5),
    "stack": lambda self, x, f: torch.stack([x, f]).sum(0),
    "addmm": lambda self, x, f: torch.addmm(
        x.view(-1, WIDTH), self.norm[3](x).view(-1, WIDTH), self.linear[3].weight
    ).view(x.shape),
}


@pytest.mark.parametrize("how", LAST)
def test_unnormed_read_of_a_sublayer_added_in_another_way(how: str) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            x = x + self.linear[k](self.norm[k](x))
        return self.norm[-1](LAST[how](self, x, torch.tanh(self.linear[3](self.norm[3](x)))))

    plan = plan_of(model)
    assert plan.streams == ()
    assert [decline.reason for decline in plan.declined] == [Reason.UNNORMED_READ]
