"""Reads of a stream: which readers belong together, and which of them are normed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_passes.analyses.reads import ReadGroup, trunk_of
from tests.passes.helpers import WIDTH, Function, chains_of, longest, reads_of, sample

Reader = Callable[[Function, int, Tensor], Tensor]


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def stream(read: Reader, last: Reader = lambda self, k, x: self.norm[-1](x)) -> Callable[..., Tensor]:
    """Three sublayers, whose input is what `read` makes of the state."""

    def model(self: Function, x: Tensor) -> Tensor:
        for k, linear in enumerate(self.linear):
            x = x + linear(read(self, k, x))
        return last(self, -1, x)

    return model


def summary(groups: tuple[ReadGroup, ...]) -> list[tuple[int, bool, bool]]:
    return [(read.state, read.normed, read.feeds_write) for read in groups]


ALL_NORMED = [(state, True, False) for state in range(4)]

NORMS: dict[str, Reader] = {
    "layer_norm": lambda self, k, x: self.norm[k](x),
    "rms_norm": lambda self, k, x: F.rms_norm(x, (WIDTH,)),
    "hand_written_rms": lambda self, k, x: rms(x),
    "rms_by_division": lambda self, k, x: x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-8),
    "l2": lambda self, k, x: F.normalize(x, dim=-1),
    "hand_written_layer_norm": lambda self, k, x: (
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    ),
    "norm_in_fp32": lambda self, k, x: rms(x.float()).double(),
    "scaled_before_the_norm": lambda self, k, x: self.norm[k](x * 3.0),
    "max_norm": lambda self, k, x: x / x.abs().amax(-1, keepdim=True),
    "softmax_of_normed": lambda self, k, x: rms(x).softmax(-1),
    "norm_of_a_slice": lambda self, k, x: F.layer_norm(x, (WIDTH,))[:, :1].expand_as(x),
    "reshaped_before_the_norm": lambda self, k, x: self.norm[k](x.reshape(-1, WIDTH)).view_as(x),
}


@pytest.mark.parametrize("name", NORMS)
def test_normed_reader_is_one_read_per_state(name: str) -> None:
    _, reads = reads_of(stream(NORMS[name]))
    assert summary(reads.groups) == ALL_NORMED
    assert reads.channels_first is None


@pytest.mark.parametrize("name", ["hand_written_rms", "hand_written_layer_norm", "l2", "rms_by_division"])
def test_all_readers_inside_one_norm_are_uses_of_the_same_read(name: str) -> None:
    trace, reads = reads_of(stream(NORMS[name]))
    for read in reads.groups[:3]:
        readers = {node for _, node in read.uses}
        direct = {
            trace.ops[op].node
            for value, _ in read.uses
            for op in trace.users[value]
            if trace.ops[op].name != "aten.add"
        }
        assert readers == direct


def test_two_norms_of_one_state_are_two_reads() -> None:
    _, reads = reads_of(stream(lambda self, k, x: self.norm[k](x) * rms(x)))
    assert summary(reads.groups) == [(k, True, False) for k in range(3) for _ in range(2)] + [(3, True, False)]


def test_shared_variance_of_two_scales_is_one_read() -> None:
    def both(self: Function, k: int, x: Tensor) -> Tensor:
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (x * inverse).sin() + (x * 2.0 * inverse).cos()

    _, reads = reads_of(stream(both))
    assert summary(reads.groups) == ALL_NORMED


def test_reads_come_in_the_order_of_states_and_of_the_graph() -> None:
    trace, reads = reads_of(stream(lambda self, k, x: self.norm[0](x) * self.norm[1](x)))
    assert [read.state for read in reads.groups] == sorted(read.state for read in reads.groups)
    firsts = [read.uses[0][1] for read in reads.groups]
    assert firsts == sorted(firsts)
    assert len(trace.nodes) > max(firsts)


@pytest.mark.parametrize(
    ("reader", "lost_in"),
    [
        (lambda self, k, x: x, "aten.add"),
        (lambda self, k, x: F.gelu(x), "aten.gelu"),
        (lambda self, k, x: x + 1.0, "aten.add"),
        (lambda self, k, x: x.softmax(-1), "aten._softmax"),
        (lambda self, k, x: self.norm[k](x + 1.0), "aten.add"),
        (lambda self, k, x: rms(x, eps=1.0), "aten.add"),
        (lambda self, k, x: x.clamp(-1, 1), "aten.clamp"),
        (lambda self, k, x: self.norm[k](x) * torch.sigmoid(x), "aten.sigmoid"),
    ],
)
def test_unnormed_reader_that_feeds_a_write_is_found(reader: Reader, lost_in: str) -> None:
    trace, reads = reads_of(stream(reader))
    offending = [read for read in reads.groups if read.feeds_write]
    assert {read.state for read in offending} == {0, 1, 2}
    assert not any(read.normed for read in offending)
    assert reads.groups[-1].normed
    lost = [trace.ops[read.lost_at].name for read in offending if read.lost_at is not None]
    assert all(name in (lost_in, "aten.addmm") for name in lost)
    assert lost


def test_only_the_root_is_read_unnormed() -> None:
    _, reads = reads_of(stream(lambda self, k, x: x if k == 0 else self.norm[k](x)))
    assert summary(reads.groups) == [(0, False, True), *ALL_NORMED[1:]]


@pytest.mark.parametrize("added", [1, 2], ids=["an earlier state", "the state itself"])
def test_state_that_is_added_as_it_is_was_read_without_a_norm(added: int) -> None:
    """Depth attention would give its reader something of another scale than the sum; the root alone is a source."""

    def model(self: Function, x: Tensor) -> Tensor:
        states = [x * 1.5]
        for k in range(2):
            states.append(states[-1] + self.linear[k](self.norm[k](states[-1])))
        x = states[-1] + states[added]
        return self.norm[-1](x + self.linear[2](self.norm[2](x)))

    _, reads = reads_of(model)
    assert [read.state for read in reads.groups if read.feeds_write] == [added]


def test_returned_state_is_an_unnormed_read_that_feeds_no_write() -> None:
    def model(self: Function, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, states = x * 1.5, []
        for norm, linear in zip(self.norm, self.linear, strict=False):
            states.append(x)
            x = x + linear(norm(x))
        return self.norm[-1](x), states

    _, reads = reads_of(model)
    assert summary(reads.groups) == [
        (0, True, False),
        (0, False, False),
        (1, True, False),
        (1, False, False),
        (2, True, False),
        (2, False, False),
        (3, True, False),
    ]


@pytest.mark.parametrize("last", [lambda self, k, x: x, lambda self, k, x: self.linear[0](x)])
def test_last_state_that_leaves_unnormed_feeds_no_write(last: Reader) -> None:
    _, reads = reads_of(stream(NORMS["layer_norm"], last))
    assert summary(reads.groups) == [*ALL_NORMED[:3], (3, False, False)]


def test_returned_statistic_of_a_norm_makes_its_read_unnormed() -> None:
    """The variance that leaves the graph would be another one after the rewrite."""

    def model(self: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        variance = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + 1e-6), variance

    _, reads = reads_of(model)
    assert summary(reads.groups) == [*ALL_NORMED[:3], (3, False, False)]


def test_states_of_one_stream_mixed_in_one_norm_are_unnormed() -> None:
    """A depth attention scales each state differently, so the scales do not cancel."""

    def model(self: Function, x: Tensor) -> Tensor:
        first = x + self.linear[0](self.norm[0](x))
        second = first + self.linear[1](self.norm[1](first))
        mixed = self.norm[2](torch.cat([first, second], -2).mean(-2, keepdim=True))
        return self.norm[-1](second + self.linear[2](mixed))

    _, reads = reads_of(model)
    assert [(read.state, read.normed) for read in reads.groups] == [
        (0, True),
        (1, True),
        (1, False),
        (2, False),
        (3, True),
    ]
    assert all(read.feeds_write for read in reads.groups if not read.normed)


def test_ratio_of_two_states_is_not_normed() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        first = x + self.linear[0](self.norm[0](x))
        second = first + self.linear[1](self.norm[1](first))
        return self.norm[-1](second + self.linear[2](first / second))

    _, reads = reads_of(model)
    assert [read.state for read in reads.groups if read.feeds_write] == [1, 2]


def test_foreign_stream_that_is_reached_unnormed_counts_as_a_write() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        for norm, linear in zip(self.norm, self.linear[:2], strict=False):
            y = y + linear(norm(y)) * x
        return self.norm[-1](y)

    _, reads = reads_of(model, sample(), sample(seed=2))
    last = [read for read in reads.groups if read.state == 3]
    assert last
    assert all(read.feeds_write and not read.normed for read in last)


def test_foreign_stream_that_sees_a_normed_state_is_no_obstacle() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        memory = self.norm[-1](x)
        for norm, linear in zip(self.norm, self.linear[:2], strict=False):
            y = y + linear(norm(y)) * memory
        return self.norm[-1](y)

    _, reads = reads_of(model, sample(), sample(seed=2))
    assert summary(reads.groups) == ALL_NORMED


def test_read_through_a_stale_alias_is_opaque() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x * 1.0
        flat = x.view(-1, WIDTH)
        x.add_(self.linear[0](self.norm[0](x)))
        x = x + self.linear[1](self.norm[1](flat)).view(2, 3, WIDTH)
        return self.norm[-1](x + self.linear[2](self.norm[2](x)))

    _, reads = reads_of(model)
    assert any(read.opaque for read in reads.groups)


def test_dead_reader_is_no_read() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            _ = torch.sigmoid(x)
            x = x + linear(norm(x))
        return self.norm[-1](x)

    _, reads = reads_of(model)
    assert summary(reads.groups) == ALL_NORMED


def test_shape_question_is_no_read() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x)) + torch.zeros_like(x) * x.new_ones(1)
        return self.norm[-1](x)

    _, reads = reads_of(model)
    assert all(read.normed for read in reads.groups)


def test_trunk_knows_the_state_of_every_value_on_the_stream() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = (x + linear(norm(x))).reshape(-1, WIDTH).view(2, 3, WIDTH)
        return self.norm[-1](x)

    _, found = chains_of(model)
    chain = longest(found)
    trunk = trunk_of(chain)
    assert trunk.state_of[chain.root] == 0
    assert [trunk.state_of[addition.after] for addition in chain.additions] == [1, 2, 3]
    assert [trunk.state_of[step.after] for step in chain.additions[1].carried] == [1, 1]
    assert trunk.order[0] == chain.root
    assert {addition.op for addition in chain.additions} < trunk.ops
