"""A group of reads with adds before and norms behind, on kernels and by definition: for GPUs and the interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

from attnres_kernels.autograd import generated_reads, keys
from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import Neighbours, ReadForm, ReadParts

EPS, NORM_EPS, READS = 1e-6, 1e-5, 3

Leaves = dict[str, list[Tensor]]


def leaves(tokens: int, width: int, blocks: int, device: str) -> Leaves:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, spread: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device) * spread
        return values.to(torch.bfloat16).requires_grad_()

    return {
        "block": [draw(tokens, width) for _ in range(blocks)],
        "branch": [draw(tokens, width) for _ in range(READS)],
        "query": [draw(width, spread=width**-0.5) for _ in range(READS)],
        "key weight": [draw(width) for _ in range(READS)],
        "norm weight": [draw(width) for _ in range(READS)],
    }


def on_kernels(given: Leaves, two_phase: bool) -> list[Tensor]:
    """The group as a lowered graph has it."""
    blocks, branches = given["block"], given["branch"]
    matrix, (of_set,), rows = keys.key_matrix(given["query"], given["key weight"], [(0, READS)])
    logits = [generated_reads.source_logits(x, matrix, 0, EPS) for x in blocks]
    links, _ = generated_reads.link_sources(blocks, logits, of_set, 0, READS, EPS)
    made = generated_reads.phase_1(blocks, logits, 0, READS, READS) if two_phase else [None] * (2 * READS)
    in_place = ([], []) if two_phase else (blocks, logits)
    partial, outputs = branches[0], []
    for s in range(READS):
        branch = branches[s] if s else None
        parts = ReadParts(made[s], made[READS + s], *in_place, partial, rows[s])
        behind = Neighbours(branch, "rms", NORM_EPS, given["norm weight"][s], None, False)
        normed, *rest = generated_reads.read([(links, s)], parts, ReadForm(s, READS, 1.0, EPS), blocks[0], behind)
        partial = rest[0] if rest else partial
        outputs.append(normed)
    return [*outputs, partial]


def definition(given: Leaves) -> list[Tensor]:
    blocks, branches = given["block"], given["branch"]
    matrix = scheduled.key_matrix(given["query"], given["key weight"])
    logits = [scheduled.source_logits(x, matrix, 0, EPS) for x in blocks]
    partial, outputs = branches[0], []
    for s in range(READS):
        partial = partial + branches[s] if s else partial
        value = scheduled.direct_read(blocks, logits, partial, matrix, s, 1.0, EPS)
        outputs.append(scheduled.normalise(value, "rms", NORM_EPS, given["norm weight"][s], None))
    return [*outputs, partial]


def with_gradients(outputs: list[Tensor], given: Leaves) -> list[Tensor]:
    """The outputs, and the gradients of all leaves."""
    flat = [x for part in given.values() for x in part]
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    directions = [torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype) for x in outputs]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, flat, directions)]


def largest_error(tokens: int, width: int, blocks: int, compiled: bool, two_phase: bool, device: str) -> float:
    """Of all outputs and gradients, relative to their size; two runs must give the same bits."""
    given = leaves(tokens, width, blocks, device)
    run = torch.compile(on_kernels, fullgraph=True) if compiled else on_kernels
    found = with_gradients(run(given, two_phase), given)
    again = with_gradients(run(given, two_phase), given)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True)), "two runs, different bits"
    exact = {name: [x.detach().float().requires_grad_() for x in part] for name, part in given.items()}
    expected = with_gradients(definition(exact), exact)
    errors = [(one.float() - other).norm() / other.norm() for one, other in zip(found, expected, strict=True)]
    return float(torch.stack(errors).max())  # which is NaN if one of them is
