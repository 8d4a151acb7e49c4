"""What stays where it is when a graph is cut at its reads, and what moves."""

from __future__ import annotations

import torch
from torch import Tensor

from attnres_passes.ir.levels import Level
from attnres_passes.lower.split_at_reads import NotSplit, Part, split_at_reads
from tests.passes.helpers import WIDTH, Function, analysed, levels_of, sample


def parts_of(function: object, *args: Tensor) -> tuple[Part, ...] | NotSplit:
    found, analysis = analysed(function, *args, block_size=1, schedule="naive")  # type: ignore[arg-type]
    return split_at_reads(levels_of(found.gm, analysis)[Level.LOWERED])


def assert_in_order(parts: tuple[Part, ...] | NotSplit) -> None:
    """Every part is given what earlier ones have made."""
    assert not isinstance(parts, NotSplit)
    made: set[object] = set()
    for part in parts:
        assert all(node.op == "placeholder" or node in made for node in part.inputs), part.origin
        made |= set(part.outputs)


def kinds_of_sublayers(parts: tuple[Part, ...] | NotSplit) -> int:
    assert not isinstance(parts, NotSplit)
    calls = [("call_method", "tanh")]
    return len({part.token for part in parts if any((x.op, x.target) in calls for x in part.gm.graph.nodes)})


def layers(self: Function, x: Tensor, angle: Tensor) -> Tensor:
    for k in range(3):
        x = x + self.linear[k](self.norm[k](x) * angle).tanh()
    return self.norm[-1](x)


def angles_without_gradients(self: Function, x: Tensor, angle: Tensor) -> Tensor:
    x = x.sinh()
    with torch.no_grad():
        turned = angle.cos() * 2
    return layers(self, x, turned)


def angles_under_a_mode_with_the_stream(self: Function, x: Tensor, angle: Tensor) -> Tensor:
    x = x.sinh()
    with torch.no_grad():
        turned, size = angle.cos(), x.sum()
    return layers(self, x, turned * 2) * size


def one_of_two(self: Function, x: Tensor, angle: Tensor) -> Tensor:
    x = x.sinh()
    first, second = angle.split(WIDTH // 2, dim=-1)
    return layers(self, x, torch.cat([first, second], -1))


def test_what_all_layers_need_comes_before_them_with_its_mode() -> None:
    parts = parts_of(angles_without_gradients, sample(), sample(seed=2))
    assert_in_order(parts)
    assert kinds_of_sublayers(parts) == 1


def test_nothing_moves_before_what_it_needs() -> None:
    """What stands under a mode together with the stream stays, and so does all that needs it."""
    assert_in_order(parts_of(angles_under_a_mode_with_the_stream, sample(), sample(seed=2)))


def test_tuples_stay_within_a_part() -> None:
    parts = parts_of(one_of_two, sample(), sample(seed=2))
    assert_in_order(parts)
    assert kinds_of_sublayers(parts) == 1
