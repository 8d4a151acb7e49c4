"""FLOPs that torch's counter finds in a group of reads, forward and backward, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import attnres_kernels.operators.flops  # noqa: F401  (registers the formulas)
from attnres_kernels.autograd import fused, keys, own, two_phase

TOKENS, WIDTH, BLOCKS, READS, EPS = 5, 8, 3, 2, 1e-6
ELEMENTS = TOKENS * WIDTH


def parameters() -> tuple[list[torch.Tensor], ...]:
    return tuple(
        [torch.randn(*shape, requires_grad=True) for _ in range(count)]
        for count, shape in ((BLOCKS, (TOKENS, WIDTH)), (READS, (TOKENS, WIDTH)), (READS, (WIDTH,)), (READS, (WIDTH,)))
    )


def on_kernels() -> torch.Tensor:
    sources, partials, queries, weights = parameters()
    matrix, (of_group,), rows = keys.key_matrix(queries, weights, [(0, READS)])
    logits = [fused.source_logits(x, matrix, 0, EPS) for x in sources]
    links, _ = fused.link_sources(sources, logits, of_group, 0, READS, EPS)
    made = fused.phase_1(sources, logits, 0, READS, READS)
    total = torch.zeros(())
    for s in range(READS):
        of_read = made[s], made[READS + s], [], [], partials[s], rows[s]
        (value,) = fused.read([links], [s], *of_read, s, READS, 1.0, EPS, sources[0])
        total = total + value.sum()
    return total


def on_torch() -> torch.Tensor:
    sources, partials, queries, weights = parameters()
    matrix, (of_group,), rows = keys.key_matrix(queries, weights, [(0, READS)])
    logits = [two_phase.source_logits(x, matrix, 0, EPS) for x in sources]
    inter, log_sums, _ = two_phase.inter_block(sources, logits, of_group, 0, READS, EPS)
    total = torch.zeros(())
    for s in range(READS):
        of_read = inter[s], log_sums[s], partials[s], rows[s], sources, logits
        total = total + two_phase.merge(*of_read, s, READS, 1.0, EPS).sum()
    return total


LOGITS = BLOCKS * 2 * (READS + 1)
PHASE_1 = 2 * BLOCKS * READS


@pytest.mark.interpreter
def test_on_kernels() -> None:
    with FlopCounterMode(display=False) as counter:
        loss = on_kernels()
    # A read: a weighted sum of two parts; square sum and dot product of the partial sum.
    assert counter.get_total_flops() == (LOGITS + PHASE_1 + READS * 2 * 4) * ELEMENTS
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    # A read: the sum again, h . u, h . p, three terms of dp, dk. A source: squares, its own term; per read four.
    assert counter.get_total_flops() == (READS * 2 * 8 + BLOCKS * 2 * (2 + 4 * READS)) * ELEMENTS


@pytest.mark.interpreter
@pytest.mark.parametrize("norm", [None, "rms"])
def test_a_read_with_own_logits(norm: str | None) -> None:
    sources, partials, queries, weights = parameters()
    with FlopCounterMode(display=False) as counter:
        (value,) = own.own_read(sources, partials[0], queries[0], weights[0], 1.0, EPS, norm=norm, returns_value=False)
    # Of each source square sum, dot product and weighted sum.
    assert counter.get_total_flops() == (BLOCKS + 1) * 2 * 3 * ELEMENTS
    with FlopCounterMode(display=False) as counter:
        value.sum().backward()
    # h . v, three terms of dv, dk; through a norm the weighted sum again.
    assert counter.get_total_flops() == (BLOCKS + 1) * 2 * (5 if norm is None else 6) * ELEMENTS


def test_on_torch() -> None:
    """Phase 2's forward is plain torch there, which the counter leaves out as it does every norm."""
    with FlopCounterMode(display=False) as counter:
        loss = on_torch()
    assert counter.get_total_flops() == (LOGITS + PHASE_1) * ELEMENTS
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == (READS * 2 * (BLOCKS + 8) + BLOCKS * 2 * (2 + 4 * READS)) * ELEMENTS
