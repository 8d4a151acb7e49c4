"""Streams, writes and reads of every model of the zoo, against what its source says; verification of each."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

import attnres_compile as ac
from tests import zoo

ACCEPTED = [pytest.param(case, id=case.name) for case in zoo.ACCEPTED]
DECLINED = [pytest.param(case, id=case.name) for case in zoo.DECLINED]


@pytest.mark.parametrize("case", ACCEPTED)
def test_streams_are_found_exactly(case: zoo.Case) -> None:
    model, args, kwargs = case.build()
    plan = ac.explain(model, args, kwargs).plan
    found = [
        (len(stream.writes), len(stream.reads), sum(not read.normed for read in stream.reads))
        for stream in plan.streams
    ]
    assert found == [(e.writes, e.reads, e.unnormed) for e in case.streams], case.why
    assert sorted(decline.reason.value for decline in plan.declined) == sorted(case.also_declined)
    for stream, expected in zip(plan.streams, case.streams, strict=True):
        if expected.read_modules is not None:
            assert tuple(read.module for read in stream.reads) == expected.read_modules
        for site in (*stream.writes, *stream.reads):
            file, line = site.source.rsplit(":", 1)
            assert file.endswith(".py")
            assert int(line) > 0


@pytest.mark.parametrize("case", ACCEPTED)
def test_verification_passes(case: zoo.Case) -> None:
    """Two blocks, so that blocks hold several writes: zero queries give the original, schedules the definition."""
    model, args, kwargs = case.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verification = ac.verify(model, args, kwargs, num_blocks=2)
    assert verification.passed, str(verification)
    ran = [check for check in verification.checks if not check.skipped]
    assert {check.name.split(",")[0] for check in ran} == {"zero queries", "random queries"}
    single = {"toy_stream_cast": "bfloat16"}.get(case.name, "float32")
    assert {check.dtype for check in ran} <= {single, "float64"}
    assert not hasattr(model, "attnres")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", DECLINED)
def test_declined_for_the_right_reason(case: zoo.Case) -> None:
    model, args, kwargs = case.build()
    plan = ac.explain(model, args, kwargs, on_decline="ignore").plan
    assert not plan.streams
    assert {decline.reason.value for decline in plan.declined} == {case.declined}, case.why
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


def test_a_wrong_rewrite_is_found_and_the_read_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the open partial sum out of one read, as a faulty pass might, and see verification say which."""
    from attnres_passes.rewrite_stream import StreamRewriter

    honest = StreamRewriter._read

    def forgetful(self: StreamRewriter, k: int) -> torch.fx.Node:
        node = honest(self, k)
        if k == 3:
            sources = node.args[0]
            node.args = ([*sources[:-1], sources[0]], *node.args[1:])
        return node

    monkeypatch.setattr(StreamRewriter, "_read", forgetful)
    model, args, kwargs = zoo.by_name("toy_nanogpt").build()
    verification = ac.verify(model, args, kwargs)
    assert not verification.passed
    zero_queries = verification.checks[0]
    assert "read 3 of transformer.h" in zero_queries.wrong_read
    assert "NOT verified" in str(verification)
