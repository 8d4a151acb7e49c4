"""Blocks cut along the sequence over the ranks of a process group: equal outputs, less kept, the right collectives."""

from __future__ import annotations

import pytest
import torch

import attnres_compile as ac
from tests.end_to_end.models import PreNorm, tokens
from tests.end_to_end.sequence_ranks import CASES, KEPT, OF_SIZE, run_ranks

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_compute_what_one_process_does(size: int) -> None:
    for results in run_ranks(size):
        assert set(results) == set(OF_SIZE[size])
        for name, result in results.items():
            assert result.error < 1e-12, (name, result)
            assert result.changed > 1e-3, (name, "the queries change nothing, so nothing is compared")


@pytest.mark.parametrize("size", [2, 4])
def test_sums_over_ranks_become_a_reduce_scatter_and_an_all_gather(size: int) -> None:
    for results in run_ranks(size):
        for name, result in results.items():
            case, counts = CASES[name], result.collectives
            assert counts["all_gather_into_tensor"] == case.sublayers, name  # all reads but the first, and the last
            assert counts.get("reduce_scatter_tensor", 0) == (case.sublayers if case.reduces else 0), name
            assert "all_reduce" not in counts, name


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_kept_is_divided_by_the_ranks(size: int) -> None:
    """The blocks of the own tokens; beside them at most the read, two copies of it, and one tensor of all tokens."""
    for results in run_ranks(size):
        for name in KEPT:
            case = CASES[name]
            of_block = case.tokens // size * case.width * 8
            assert case.sublayers + 1 <= results[name].kept_bytes / of_block <= case.sublayers + 4 + size, name


def test_what_cannot_be_is_refused() -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,))
    call = torch.compile(model, backend="attnres", options={"inner": "eager", "sequence_group": "nowhere"})
    with pytest.raises(ac.AttnResError, match="is for inference"):
        call(ids)
    with torch.no_grad(), pytest.raises(ac.AttnResError, match=r"'nowhere'.*initialise torch.distributed first"):
        call(ids)
