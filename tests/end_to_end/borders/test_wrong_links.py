"""``verify`` sees every wrong link between the parts of a model: faults put in by hand, one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import attnres_compile as ac
from attnres_compile.compile import borders
from attnres_compile.model.border.known_states import Sources, note_state, sources_of
from tests.end_to_end.guarded_model import WIDTH, Net

Fault = Callable[[Tensor, Sources, list[Sources]], Sources | None]


def another_layer(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    """What the layer before has added comes twice, in place of what this one has."""
    if len(sources.completed) < 3:
        return sources
    return dataclasses.replace(sources, completed=(*sources.completed[:-1], sources.completed[-2]))


def an_earlier_call(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    of_before = [one for one in earlier if one.state == sources.state and len(one.completed) == len(sources.completed)]
    return of_before[0] if len(of_before) > 0 else sources


def a_block_twice(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    return dataclasses.replace(sources, completed=(sources.completed[0],) * len(sources.completed))


def a_block_of_zeros(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    """A block is missing, and something else has its place."""
    return dataclasses.replace(sources, completed=(torch.zeros_like(state), *sources.completed[1:]))


def a_block_missing(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    return dataclasses.replace(sources, completed=sources.completed[1:])


def no_sources(state: Tensor, sources: Sources, earlier: list[Sources]) -> None:
    return None


def no_gradients(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    return sources.detached()


def one_without_gradient(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    return dataclasses.replace(sources, completed=(sources.completed[0].detach(), *sources.completed[1:]))


def another_place(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    """The state is taken for that after one write more."""
    return dataclasses.replace(sources, state=sources.state + 1)


def the_state_itself(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    """The sum counts as a source beside those that it is the sum of."""
    return dataclasses.replace(sources, completed=(state, *sources.completed[1:]))


def changed_since(state: Tensor, sources: Sources, earlier: list[Sources]) -> Sources:
    """What an earlier layer has added was changed before this state was made."""
    return dataclasses.replace(sources, completed=(2 * sources.completed[0], *sources.completed[1:]))


FAULTS: list[Fault] = [
    another_layer,
    an_earlier_call,
    a_block_twice,
    a_block_of_zeros,
    a_block_missing,
    no_sources,
    no_gradients,
    one_without_gradient,
    another_place,
    the_state_itself,
    changed_since,
]


def model_that_breaks() -> Net:
    torch.manual_seed(0)
    model = Net().double()
    model.body.between = lambda number, x: print(end="" if torch.isfinite(x).all() else "nan")
    return model


def example() -> Tensor:
    return torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_right_links() -> None:
    model = model_that_breaks()
    names = [name for name, _ in model.named_parameters()]
    verification = ac.verify(model, (example(),), block_size=1)
    assert verification.passed, verification
    assert verification.checks[0].error < 1e-12
    assert "2 reads" in verification.checks[0].wrong_read or "3 reads" in verification.checks[0].wrong_read
    assert [name for name, _ in model.named_parameters()] == names, "the model is as it was"
    # Prepared, too.
    ac.prepare(model, (example(),), block_size=1)
    assert ac.verify(model, (example(),)).passed


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_wrong_links(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier: list[Sources] = []
    touched: list[int] = []

    def note_wrongly(state: Tensor, sources: Sources) -> None:
        wrong = fault(state, sources, earlier)
        touched.append(wrong is not sources)
        earlier.append(sources)
        if wrong is not None:
            note_state(state, wrong)

    model = model_that_breaks()
    if fault is an_earlier_call:
        other = model_that_breaks()

        def keep(state: Tensor, sources: Sources) -> None:
            earlier.append(sources)
            note_state(state, sources)

        monkeypatch.setattr(borders, "note_state", keep)
        assert ac.verify(other, (2 * example(),), block_size=1).passed
    monkeypatch.setattr(borders, "note_state", note_wrongly)
    verification = ac.verify(model, (example(),), block_size=1)
    assert any(touched), "the fault was put in"
    assert not verification.passed, verification


def test_sources_of_another_state_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sources] = []

    def wrong(tensor: Tensor) -> Sources | None:
        found = sources_of(tensor)
        if found is not None and found.state > 0:
            seen.append(found)
            return dataclasses.replace(found, completed=(found.completed[0], *found.completed[:-1]))
        return found

    monkeypatch.setattr(borders, "sources_of", wrong)
    assert not ac.verify(model_that_breaks(), (example(),), block_size=1).passed
    assert seen
