"""A compiled training step around a prepared model: the rewrite is kept, or the step is refused with the mend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import attnres_compile as ac
from attnres_compile.model import errors
from tests.end_to_end.guarded_model import EAGER, Net, by_hand, in_place, prepared


def compiled_step(
    model: Net, optimizer: torch.optim.Optimizer, backend: str, inside: bool
) -> Callable[[Tensor], Tensor]:
    """A step with forward and backward pass; inside: with the optimizer's, too."""

    def step(x: Tensor) -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        if inside:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return torch.compile(step, backend=backend, options=EAGER if backend == "attnres" else None)


@pytest.mark.parametrize("inside", [False, True], ids=["optimizer outside", "optimizer inside"])
@pytest.mark.parametrize(
    ("backend", "compiled"), [("attnres", False), ("attnres", True), ("aot_eager", True), ("inductor", True)]
)
def test_a_step_keeps_the_rewrite(backend: str, compiled: bool, inside: bool) -> None:
    """Losses and parameters of four steps, against the equations in eager."""
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    model, reference = prepared(x), prepared(x)
    if compiled:
        in_place(model)
    made = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9) for one in (model, reference)]
    step = compiled_step(model, made[0], backend, inside)
    for _ in range(4):
        loss = step(x)
        if not inside:
            made[0].step()
            made[0].zero_grad()
        expected = by_hand(reference, x).square().mean()
        expected.backward()
        made[1].step()
        made[1].zero_grad()
        torch.testing.assert_close(loss, expected)
    for (name, parameter), right in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, right, msg=lambda text, name=name: f"{name}: {text}")
    status = ac.status(model)
    assert (status.state, status.rewritten_calls, status.refused_calls) == ("rewritten", 4, 0)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_step_around_a_model_that_is_not_compiled_is_refused(backend: str) -> None:
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    model = prepared(x)
    step = compiled_step(model, torch.optim.SGD(model.parameters(), lr=0.1), backend, inside=True)
    with pytest.raises(errors.NotInForceError, match=rf"graph of the backend '{backend}'.*backend=\"attnres\""):
        step(x)
    # As the message says.
    in_place(model)
    torch.testing.assert_close(step(x), by_hand(prepared(x), x).square().mean())
