"""Streams, writes and reads of every accepted model of the zoo, against what its source says; verification of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnres_compile as ac
from attnres_compile.api import verify as verifying
from attnres_compile.api.verify_eager import WHOLE
from attnres_compile.capture.analysis import plan_eagerly
from attnres_passes.ir.plan import Plan
from tests import zoo


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in zoo.ACCEPTED])
def test_streams_are_found_exactly_and_verified(case: zoo.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """All from one capture, which takes longest. Two blocks, so that blocks hold several writes."""
    plans: list[Plan] = []
    plan_of = verifying.plan_of
    monkeypatch.setattr(verifying, "plan_of", lambda *args: plans.append(plan_of(*args)) or plans[-1])
    model, args, kwargs = case.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verification = ac.verify(model, args, kwargs, num_blocks=2)
    (plan,) = plans
    assert_as_its_source_says(plan, case)
    # A run by Python finds what the graph holds, down to the source lines.
    assert plan_eagerly(model, args, kwargs, plan.config) == plan
    assert_passed(verification, case)
    assert not hasattr(model, "attnres")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def assert_as_its_source_says(plan: Plan, case: zoo.Case) -> None:
    found = [
        (len(stream.writes), len(stream.reads), sum(not read.normed for read in stream.reads))
        for stream in plan.streams
    ]
    assert found == [(e.writes, e.reads, e.unnormed) for e in case.streams], case.why
    assert sorted(decline.reason.value for decline in plan.declined) == sorted(case.also_declined)
    assert not plan.partial, plan.partial_text
    for stream, expected in zip(plan.streams, case.streams, strict=True):
        if expected.read_modules is not None:
            assert tuple(read.module for read in stream.reads) == expected.read_modules
        for site in (*stream.writes, *stream.reads):
            file, line = site.source.rsplit(":", 1)
            assert file.endswith(".py")
            assert int(line) > 0


def assert_passed(verification: ac.Verification, case: zoo.Case) -> None:
    """Zero queries give the original, every schedule the definition, compiled or not: also in fp64 if it can."""
    assert verification.passed, str(verification)
    ran = [check for check in verification.checks if not check.skipped]
    assert {check.name.split(",")[0] for check in ran} == {"zero queries", "random queries", WHOLE.split(",")[0]}
    single = {"toy_stream_cast": "bfloat16"}.get(case.name, "float32")
    assert {check.dtype for check in ran} <= {single, "float64"}


def test_a_wrong_rewrite_is_found_and_the_read_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the open partial sum out of one read, as a faulty pass might, and see verification say which."""
    from attnres_passes.rewrite.rewrite_stream import StreamRewriter

    honest = StreamRewriter._read

    def forgetful(self: StreamRewriter, k: int, *where: Any) -> torch.fx.Node:
        node = honest(self, k, *where)
        if k == 3:
            sources = node.args[0]
            node.args = ([*sources[:-1], sources[0]], *node.args[1:])
        return node

    monkeypatch.setattr(StreamRewriter, "_read", forgetful)
    model, args, kwargs = zoo.by_name("toy_nanogpt").build()
    verification = ac.verify(model, args, kwargs)
    assert not verification.passed
    zero_queries = verification.checks[0]
    assert "read 0.3 of transformer.h" in zero_queries.wrong_read
    assert "NOT verified" in str(verification)


def test_sizes_that_earlier_calls_have_made_dynamic() -> None:
    """Dynamo remembers by code, so that another model of the class, compiled with anything, decides."""
    model, _, _ = zoo.by_name("hf_gpt2").build()
    compiled = torch.compile(model, backend="eager")
    for rows, length in ((4, 9), (3, 7)):
        compiled(input_ids=torch.zeros(rows, length, dtype=torch.long))
    other, _, _ = zoo.by_name("hf_gpt2").build()
    assert ac.verify(other, kwargs={"input_ids": torch.zeros(1, 7, dtype=torch.long)}).passed
