"""A stream that is a piece of a longer chain says so, and an honest one of several does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from attnres_passes.analyses.left_out import origin_of
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from tests.passes.helpers import WIDTH, Function, traced

LAYERS = 9


def normed(x: Tensor) -> Tensor:
    return layer_norm(x, (WIDTH,))


def layer(model: Function, x: Tensor, index: int) -> Tensor:
    return x + torch.tanh(model.linear[index](normed(x)))


def layers(model: Function, x: Tensor, *indices: int) -> Tensor:
    for index in indices:
        x = layer(model, x, index)
    return x


def place_of(function: Callable[..., Any]) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + 1}"


def plan_of(function: Callable[..., Any], **options: Any) -> Plan:
    config = AttnResConfig.from_options({"block_size": 1, "on_decline": "ignore", **options})
    return find_streams(traced(function, layers=LAYERS), config).plan


CARRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "gate": lambda x: torch.sigmoid(x.roll(1, 1)) * x,
    "fill": lambda x: x.masked_fill((torch.arange(3) > 1)[:, None], 1.0),
    "where": lambda x: torch.where((torch.arange(3) < 2)[:, None], x, 1.0),
    "clamp": lambda x: x.clamp(-4, 4),
    "activation": torch.relu,
    "index": lambda x: x[:, torch.tensor([2, 0, 1])],
    "slice": lambda x: x[:, 1:],
    "more tokens": lambda x: torch.cat([torch.ones(2, 1, WIDTH, dtype=x.dtype), x], 1),
    "written into": lambda x: x.index_put((torch.tensor([0]),), x[:1] * 2),
    "cast": lambda x: torch.relu(x.float()).double(),
    "transposed": lambda x: (0.9 * x.transpose(1, 2)).transpose(1, 2),
}


@pytest.mark.parametrize("carry", CARRIES.values(), ids=CARRIES)
@pytest.mark.parametrize("allow_unnormed", [False, True])
def test_piece_behind_an_operation_on_the_sum(carry: Callable[[Tensor], Tensor], allow_unnormed: bool) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return normed(layers(self, carry(layers(self, x, 0, 1, 2)), 3, 4))

    plan = plan_of(model, allow_unnormed=allow_unnormed)
    stream = plan.streams[-1]
    assert plan.partial
    assert len(stream.writes) == 2
    assert [(one.module, one.source) for one in stream.left_out] == [("linear", place_of(layer))] * 3


def each_clamped(self: Function, x: Tensor, *indices: int) -> Tensor:
    for index in indices:
        x = x.clamp(-4, 4) + torch.tanh(self.linear[index](normed(x)))
    return x


def lerped(self: Function, x: Tensor, index: int) -> Tensor:
    return torch.lerp(x, torch.tanh(self.linear[index](normed(x))), 0.5)


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        (lambda self, x: normed(layers(self, each_clamped(self, x, 0, 1, 2), 3, 4)), 3),
        (lambda self, x: normed(each_clamped(self, layers(self, x, 0, 1), 2, 3, 4)), 3),
        (lambda self, x: normed(layers(self, layer(self, x, 0).clamp(-4, 4), 1, 2)), 1),
        (lambda self, x: normed(layers(self, lerped(self, x, 0), 1, 2)), 1),
        (lambda self, x: normed(layers(self, x.add(torch.tanh(self.linear[0](normed(x))), alpha=2), 1, 2)), 1),
    ],
    ids=["behind additions with a clamp", "before them", "behind a single addition", "lerp", "alpha"],
)
def test_piece_beside_additions_that_are_no_chain(model: Callable[..., Any], missing: int) -> None:
    (stream,) = plan_of(model).streams
    assert (len(stream.writes), len(stream.left_out)) == (2, missing)


def test_state_that_is_added_to_another_stream() -> None:
    """The later stream ends in an addition that belongs to the fork of the earlier one."""

    def model(self: Function, x: Tensor) -> Tensor:
        skip = layers(self, x, 0, 1)
        later = layers(self, self.linear[4](normed(layers(self, skip, 2, 3))), 5, 6)
        return normed(later + skip)

    plan = plan_of(model)
    assert [decline.reason for decline in plan.declined] == ["forked"]
    assert [len(stream.left_out) for stream in plan.streams] == [1]


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def embedded(self: Function, x: Tensor) -> Tensor:
    return layers(self, torch.tanh(self.linear[7](x)) + torch.arange(3.0, dtype=x.dtype)[:, None], 0, 1)


HONEST: dict[str, tuple[Callable[..., Any], int]] = {
    "whole": (lambda self, x: normed(layers(self, x, 0, 1)), 1),
    "projection": (lambda self, x: normed(layers(self, self.linear[4](normed(layers(self, x, 0, 1))), 2, 3)), 2),
    "bare projection": (lambda self, x: normed(layers(self, self.linear[4](layers(self, x, 0, 1)), 2, 3)), 1),
    "norm": (lambda self, x: normed(layers(self, normed(layers(self, x, 0, 1)), 2, 3)), 2),
    "rms": (lambda self, x: normed(layers(self, root_mean_square(layers(self, x, 0, 1)), 2, 3)), 2),
    "fused rms": (lambda self, x: normed(layers(self, rms_norm(layers(self, x, 0, 1), (WIDTH,)), 2, 3)), 2),
    "own norm": (lambda self, x: normed(layers(self, standardised(layers(self, x, 0, 1)), 2, 3)), 2),
    "token and position": (lambda self, x: normed(embedded(self, x)), 1),
    "scaled embedding": (lambda self, x: normed(layers(self, 3 * x + 1, 0, 1)), 1),
    "two of one input": (lambda self, x: normed(layers(self, 2 * x, 0, 1)) + normed(layers(self, 3 * x, 2, 3)), 2),
    "shifted": (lambda self, x: normed(0.9 * layers(self, x, 0, 1) + torch.ones(2, 3, WIDTH, dtype=x.dtype)), 1),
    "mixed before": (lambda self, x: normed(layers(self, 2 * (x + x.roll(1, 1)), 0, 1)), 1),
    "returned bare": (lambda self, x: layers(self, x, 0, 1), 1),
    "returned scaled": (lambda self, x: 2 * layers(self, x, 0, 1), 1),
    "short one elsewhere": (lambda self, x: (normed(layers(self, x, 0, 1)), layer(self, self.linear[4](x), 3)), 1),
    "post norm before": (
        lambda self, x: normed(layers(self, normed(layer(self, normed(layer(self, x, 0)), 1)), 2, 3)),
        1,
    ),
}


@pytest.mark.parametrize(("model", "streams"), HONEST.values(), ids=HONEST)
def test_whole_streams_are_not_partial(model: Callable[..., Any], streams: int) -> None:
    plan = plan_of(model)
    assert len(plan.streams) == streams
    assert not plan.partial


def test_streams_left_out_by_name() -> None:
    """What the user leaves out is no miss; a piece stays one, whichever of the pieces is asked for."""

    def apart(self: Function, x: Tensor) -> Tensor:
        return normed(layers(self, self.linear[4](normed(layers(self, x, 0, 1))), 2, 3))

    def pieces(self: Function, x: Tensor) -> Tensor:
        return normed(layers(self, layers(self, x, 0, 1).relu(), 2, 3))

    assert not plan_of(apart, streams=("linear",)).partial
    assert plan_of(pieces, streams=("linear.2",), allow_unnormed=True).partial


def test_origin_names_inputs_and_additions_nearest_first() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> Tensor:
        return 2 * layers(self, 3 * x, 0, 1) + self.linear[2](y)

    trace = traced(model, torch.ones(2, 3, WIDTH).double(), torch.ones(2, 3, WIDTH).double())
    origin = origin_of(trace, trace.graph_outputs[0])
    sums = [op.index for op in trace.ops if op.name == "aten.add"]
    assert list(origin.additions) == [sums[1], sums[0]]
    (given,) = origin.inputs
    assert trace.nodes[trace.node_output.index(given)].name == "l_args_0_"
