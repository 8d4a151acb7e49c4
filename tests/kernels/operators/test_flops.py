"""FLOPs that torch's counter finds in a group of reads, forward and backward, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnres_kernels.autograd import generated_reads, keys, own_logits_reads, two_phase
from attnres_kernels.definition.read_parts import Neighbours, ReadForm, ReadParts
from attnres_kernels.operators.definition import register_flop_formulas

register_flop_formulas()

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
    logits = [generated_reads.source_logits(x, matrix, 0, EPS) for x in sources]
    links, _ = generated_reads.link_sources(sources, logits, of_group, 0, READS, EPS)
    made = generated_reads.phase_1(sources, logits, 0, READS, READS)
    total = torch.zeros(())
    for s in range(READS):
        parts = ReadParts(made[s], made[READS + s], [], [], partials[s], rows[s])
        (value,) = generated_reads.read([(links, s)], parts, ReadForm(s, READS, 1.0, EPS), sources[0])
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
        total = total + two_phase.merge(*of_read, ReadForm(s, READS, 1.0, EPS)).sum()
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
        behind = Neighbours(norm=norm, returns_value=False)
        read = sources, partials[0], queries[0], weights[0], 1.0, EPS
        (value,) = own_logits_reads.own_logits_read(*read, behind)
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
