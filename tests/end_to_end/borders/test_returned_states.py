"""A state that Python returns as it is: read where the plan has that read, and an error where it has another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import attnres_compile as ac
from tests.end_to_end.borders.test_calls import ATOL, assert_by_hand, example, per_block
from tests.end_to_end.guarded_model import Net, by_hand, randomize


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


class Kept:
    """A container that torch does not look into."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Ends(Net):
    """What Python makes of the last state."""

    def __init__(self, end: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body.norm, self.end = nn.Identity(), end

    def forward(self, x: Tensor) -> object:
        return self.end(self.body(x))


def ending(end: Callable[[Tensor], object]) -> Ends:
    torch.manual_seed(0)
    model = Ends(end)
    model.head = nn.Identity()
    ac.prepare(model.double(), (example(),), block_size=1)
    randomize(model)
    return model


def test_a_state_that_python_returns_is_read() -> None:
    model = ending(lambda x: x)
    assert ac.status(model).plan.streams[0].reads[-1].returned
    assert_by_hand(per_block(model), example())


def test_a_state_that_is_returned_twice_is_read_once() -> None:
    model = ending(lambda x: {"last": x, "pooled": x})
    found = per_block(model)(example())
    assert found["last"] is found["pooled"]
    torch.testing.assert_close(found["last"], by_hand(model, example()), **ATOL)


@pytest.mark.parametrize("planned", [torch.square, Kept])
def test_a_read_that_is_not_the_one_of_the_plan_is_left_out(planned: Callable[[Tensor], object]) -> None:
    """Python computed with the state, or kept it where nobody sees it, when the model was planned."""
    model = per_block(ending(planned))
    if planned is torch.square:
        model.end = lambda x: x
    with pytest.raises(ac.AttnResError, match="left 1 out"):
        model(example())
