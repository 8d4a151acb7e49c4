"""A plan that covers a piece of a stream is never made in silence."""

from __future__ import annotations

import warnings

import pytest

import attnres_compile as ac
from attnres_compile.model.parameters import parameters_of
from tests.attnres_compile.capture.models import Stack, ids


def clamped() -> Stack:
    """Each block of two writes starts from a clamped sum: the last one alone is planned."""
    return Stack(lambda block, x, index: block(x.clamp(-4, 4)))


PIECE = r"partly rewritten: stream blocks\.2\.linears holds 2 writes, and 4 more additions.*Declined: clamped"


@pytest.mark.parametrize("on_decline", ["error", "warn", "ignore"])
def test_prepare_warns(on_decline: str) -> None:
    with pytest.warns(UserWarning, match=PIECE) as caught:
        plan = ac.prepare(clamped(), (ids(),), on_decline=on_decline)
    assert plan.partial
    assert [warning.filename for warning in caught if "partly" in str(warning.message)] == [__file__]


def test_compiling_a_model_that_was_not_prepared_warns() -> None:
    model = clamped()
    model.compile(backend="attnres", options={"inner": "eager"})
    with pytest.warns(UserWarning, match=PIECE):
        model(ids())


def test_a_whole_stream_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ac.prepare(Stack(), (ids(),)).partial


def test_the_plan_keeps_it_when_it_is_saved(tmp_path) -> None:
    model = clamped()
    with pytest.warns(UserWarning, match="partly"):
        plan = ac.prepare(model, (ids(),))
    ac.save(model, tmp_path)
    other = clamped()
    ac.load(other, tmp_path)
    added = parameters_of(other)
    assert added is not None
    assert added.plan == plan
    assert added.plan.partial
