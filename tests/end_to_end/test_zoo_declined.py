"""Models of the zoo that are left alone: for the right reason, and exactly as they were."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

import attnres_compile as ac
from attnres_compile.capture.analysis import plan_eagerly
from tests import zoo

DECLINED = [pytest.param(case, id=case.name) for case in zoo.DECLINED]


@pytest.mark.parametrize("case", DECLINED)
def test_declined_for_the_right_reason(case: zoo.Case) -> None:
    model, args, kwargs = case.build()
    plan = ac.explain(model, args, kwargs, on_decline="ignore").plan
    assert not plan.streams
    assert {decline.reason.value for decline in plan.declined} == {case.declined}, case.why
    assert plan_eagerly(model, args, kwargs, plan.config) == plan
    for decline in plan.declined:
        file, line = decline.source.rsplit(":", 1)
        assert file.endswith(".py")
        assert int(line) > 0


@pytest.mark.parametrize("case", DECLINED)
def test_declined_models_run_bit_identically(case: zoo.Case) -> None:
    model, args, kwargs = case.build()
    torch.manual_seed(1)
    expected = tree_leaves(model(*args, **kwargs))
    names = list(model.state_dict())
    with pytest.raises(ac.AttnResError):
        ac.prepare(model, args, kwargs)
    model.compile(backend="attnres", options={"on_decline": "ignore", "inner": "eager"})
    torch.manual_seed(1)
    found = tree_leaves(model(*args, **kwargs))
    assert list(model.state_dict()) == names
    assert ac.status(model).state == "declined"
    for left, right in zip(expected, found, strict=True):
        assert not isinstance(left, torch.Tensor) or torch.equal(left, right)


@pytest.mark.parametrize("case", [case for case in DECLINED if case.values[0].declined == "unnormed_read"])
def test_unnormed_reads_can_be_allowed(case: zoo.Case) -> None:
    model, args, kwargs = case.build()
    plan = ac.explain(model, args, kwargs, allow_unnormed=True).plan
    assert [
        (len(stream.writes), len(stream.reads), sum(not read.normed for read in stream.reads))
        for stream in plan.streams
    ] == [(e.writes, e.reads, e.unnormed) for e in case.streams]
    assert ac.verify(model, args, kwargs, allow_unnormed=True, num_blocks=2).passed
