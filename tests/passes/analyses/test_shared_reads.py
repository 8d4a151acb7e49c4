"""Readers of one state that are one sublayer's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnres_passes.ir.plan import Read
from tests.passes.helpers import Function, analysed, only_stream


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def project(self: Function, k: int, x: Tensor) -> Tensor:
    """Without a bias, which would not scale with the state."""
    return x @ self.linear[k].weight


def three_steps(branch: Callable[[Function, Tensor], Tensor]) -> Callable[..., Tensor]:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x.sinh()
        for _ in range(3):
            x = x + branch(self, x)
        return self.norm[-1](x)

    return model


def reads_of_second_state(branch: Callable[[Function, Tensor], Tensor], **options: Any) -> list[Read]:
    _, analysis = analysed(three_steps(branch), **options)
    return [read for read in only_stream(analysis).reads if read.state == 1]


def normed_behind_projections(self: Function, x: Tensor) -> Tensor:
    query, key = self.norm[0](project(self, 0, x)), self.norm[1](project(self, 1, x))
    return self.norm[2](attend(query, key, project(self, 2, x)))


def test_projections_normed_behind_are_one_read_of_an_attention() -> None:
    """Queries and keys lose the scale of the state in their norms, values in the norm after the attention."""
    (read,) = reads_of_second_state(normed_behind_projections)
    assert read.normed


def gated_on_the_bare_state(self: Function, x: Tensor) -> Tensor:
    return project(self, 2, torch.nn.functional.silu(project(self, 0, x)) * project(self, 1, x))


def test_gate_and_value_of_an_unnormed_mlp_are_one_read() -> None:
    (read,) = reads_of_second_state(gated_on_the_bare_state, allow_unnormed=True)
    assert not read.normed


def one_normed_too_late(self: Function, x: Tensor) -> Tensor:
    return self.norm[0](project(self, 0, x)) * project(self, 1, x).tanh()


def test_shared_read_is_unnormed_if_one_part_is() -> None:
    (read,) = reads_of_second_state(one_normed_too_late, allow_unnormed=True)
    assert not read.normed
    _, analysis = analysed(three_steps(one_normed_too_late))
    assert [decline.reason.value for decline in analysis.plan.declined] == ["unnormed_read"]


def two_norms_in_parallel(self: Function, x: Tensor) -> Tensor:
    return project(self, 0, self.norm[0](x)) * project(self, 1, self.norm[1](x))


def test_reads_that_begin_with_a_norm_stay_apart() -> None:
    assert len(reads_of_second_state(two_norms_in_parallel)) == 2


def bare_beside_normed(self: Function, x: Tensor) -> Tensor:
    return project(self, 0, self.norm[0](x)) * self.norm[1](project(self, 1, x))


def test_read_that_begins_with_a_norm_does_not_join_a_bare_one() -> None:
    assert len(reads_of_second_state(bare_beside_normed)) == 2


@pytest.mark.parametrize("meets", [True, False])
def test_bare_reads_join_only_where_they_meet_before_the_next_write(meets: bool) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x.sinh()
        for _ in range(3):
            first, second = self.norm[0](project(self, 0, x)), self.norm[1](project(self, 1, x))
            x = x + (first + second) if meets else (x + first) + second
        return self.norm[-1](x)

    _, analysis = analysed(model)
    stream = only_stream(analysis)
    assert len(stream.writes) == (3 if meets else 6)
    assert len([read for read in stream.reads if read.state == (1 if meets else 2)]) == (1 if meets else 2)
