"""Models of the zoo that Dynamo breaks: planned over all of their graphs, as their source says."""

from __future__ import annotations

import re

import pytest

import attnres_compile as ac
from tests import zoo
from tests.end_to_end.test_zoo import assert_as_its_source_says


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in zoo.IN_PIECES])
def test_streams_are_found_over_all_pieces(case: zoo.Case) -> None:
    model, args, kwargs = case.build()
    plan = ac.prepare(model, args, kwargs, num_blocks=2)
    assert_as_its_source_says(plan, case)
    for stream in plan.streams:
        assert stream.num_blocks == 2
        assert len({write.module for write in stream.writes}) >= len(stream.writes) * 3 // 5
        assert all(read.module for read in stream.reads)
    for decline in plan.declined:
        assert re.search(r"modeling_\w+\.py:\d+$", decline.source)
