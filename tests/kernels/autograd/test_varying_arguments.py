"""Functions with any number of tensors, traced by Dynamo where nothing asks for gradients, as in compiled chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnres_kernels.autograd import two_phase
from attnres_kernels.autograd.keys import key_matrix
from attnres_kernels.definition.read_parts import ReadForm

EPS = 1e-6


def reads(sources: list[Tensor], partial: Tensor, queries: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """All reads of a group over these blocks, each with the open partial sum."""
    total = len(queries)
    rows, of_groups, of_reads = key_matrix(queries, weights, [(0, total)])
    logits = [two_phase.source_logits(source, rows, 0, EPS) for source in sources]
    inter, log_sums, _ = two_phase.inter_block(sources, logits, of_groups[0], 0, total, EPS)
    return [
        two_phase.merge(
            inter[read], log_sums[read], partial, of_reads[read], sources, logits, ReadForm(read, total, 1.0, EPS)
        )
        for read in range(total)
    ]


# With two tensors behind *, as many arguments are given as the signature has names.
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("queries", [1, 2])
def test_compiled_without_gradients(blocks: int, queries: int) -> None:
    torch.compiler.reset()
    made = torch.Generator().manual_seed(0)
    sources = [torch.randn(3, 8, generator=made) for _ in range(blocks)]
    vectors = [torch.randn(8, generator=made) for _ in range(2 * queries)]
    given = sources, torch.randn(3, 8, generator=made), vectors[:queries], vectors[queries:]
    with torch.no_grad():
        found = torch.compile(reads, backend="eager", fullgraph=True)(*given)
        expected = reads(*given)
    assert len(found) == queries
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
