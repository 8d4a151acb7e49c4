"""Blocks cut along the sequence over the ranks of a process group: equal outputs, less kept, the right collectives."""

from __future__ import annotations

import pytest

from tests.end_to_end.sequence_ranks import CASES, KEPT, run_ranks

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_compute_what_one_process_does(size: int) -> None:
    for results in run_ranks(size):
        assert set(results) == set(CASES)
        for name, result in results.items():
            assert result.error < 1e-12, (name, result)
            assert result.changed > 1e-3, (name, "the queries change nothing, so nothing is compared")


@pytest.mark.parametrize("size", [2, 4])
def test_sums_over_ranks_become_a_reduce_scatter_and_an_all_gather(size: int) -> None:
    for results in run_ranks(size):
        for name, case in CASES.items():
            counts = results[name].collectives
            assert counts["all_gather_into_tensor"] == case.sublayers, name  # all reads but the first, and the last
            assert counts.get("reduce_scatter_tensor", 0) == (case.sublayers if case.reduces else 0), name
            assert "all_reduce" not in counts, name


def test_what_is_kept_is_divided_by_the_ranks() -> None:
    (alone,) = run_ranks(1)
    for name in KEPT:
        case = CASES[name]
        unit, blocks = case.tokens * case.width * 8, case.sublayers + 1
        assert alone[name].peak_bytes >= blocks * unit
        for size in (2, 4):
            own = -(-case.tokens // size) * case.width * 8
            for results in run_ranks(size):
                assert blocks * own <= results[name].peak_bytes <= blocks * own + 5 * unit, name
