"""The scheduled level on generated kernels, as functions that a graph pass calls, with gradients.

How gradients get from a read to the blocks it attends to. Each set of blocks that a group of reads shares is tied to
those reads by `link_sources`: per read it hands out two *links*, tensors without memory of their own, which the read
takes as inputs and does not look at. A read's backward gives as their gradients `h`, the gradient of its weighted sum,
and two numbers per token, with which the backward of `link_sources` makes the gradients of all its blocks and keys from
all its reads at once (see `generation.sources_backward`). `link_sources` hands its blocks on, too: given to the next
group's call, the contributions of later groups arrive as gradients that are added in the same kernel. So a block gets
one gradient from all its readers, without a chain of sums, whichever way the reads are grouped.

Phase 1's outputs have no gradients of their own. They are made of blocks that are kept anyway, so that a compiler may
make them again in the backward rather than keep them; the pass that calls `phase_1` marks it so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnres_kernels.autograd.first_order import first_order
from attnres_kernels.autograd.varying_arguments import varying_arguments
from attnres_kernels.definition.read_parts import ALONE, Neighbours, OutputGradients, ReadForm, ReadParts
from attnres_kernels.operators.definition import described_by
from attnres_kernels.operators.logits import GENERATED_BLOCK, GENERATED_LOGITS, Block, Logits
from attnres_kernels.operators.phase_1 import GENERATED_PHASE_1, Phase1
from attnres_kernels.operators.read import GENERATED_READ, GENERATED_READ_BACKWARD, Read, ReadBackward
from attnres_kernels.operators.sources_backward import SOURCES_BACKWARD, SourcesBackward


class _CompleteBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, partial: Tensor, branch: Tensor, keys: Tensor, first: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        block, logits = GENERATED_BLOCK(Block(partial, branch, keys, first, eps))
        ctx.mark_non_differentiable(logits)
        return block, logits

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return grads[0], grads[0], None, None, None


class _LinkSources(torch.autograd.Function):
    @staticmethod
    @varying_arguments
    def forward(ctx: Any, first: int, total: int, eps: float, keys: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count, blocks = keys.shape[0], len(tensors) // 2
        ctx.layout = (first, total, eps, count)
        ctx.save_for_backward(keys, *tensors)
        ctx.set_materialize_grads(False)
        sources = tensors[:blocks]
        shape = sources[0].shape
        wide = [sources[0].new_zeros(()).expand(shape) for _ in range(count)]
        scalars = [keys.new_zeros((), dtype=torch.float32).expand(2, *shape[:-1]) for _ in range(count)]
        return *wide, *scalars, *sources

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        first, total, eps, count = ctx.layout
        keys, *tensors = ctx.saved_tensors
        blocks = len(tensors) // 2
        scalars = [None if x is None else x.reshape(2, -1) for x in grads[count : 2 * count]]
        of_reads = list(grads[:count]), scalars, list(grads[2 * count :])
        call = SourcesBackward(*of_reads, tensors[:blocks], tensors[blocks:], keys, first, total, eps)
        *source_grads, key_grads = SOURCES_BACKWARD(call)
        return None, None, None, key_grads, *source_grads, *([None] * blocks)


class _Layout(NamedTuple):
    """What a read is, apart from its tensors. links: sets of blocks that it is linked to; sources: blocks in place."""

    links: int
    sources: int
    form: ReadForm
    dtype: torch.dtype
    neighbours: Neighbours


class _Read(torch.autograd.Function):
    @staticmethod
    @varying_arguments
    def forward(
        ctx: Any,
        layout: _Layout,
        partial: Tensor | None,
        branch: Tensor | None,
        key: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        inter, log_sum, *others = tensors
        blocks = others[2 * layout.links :]
        parts = ReadParts(inter, log_sum, blocks[: layout.sources], blocks[layout.sources :], partial, key)
        neighbours = with_tensors(layout.neighbours, branch, norm_weight, norm_bias)
        *made, statistics = GENERATED_READ(Read(parts, neighbours, layout.form, layout.dtype))
        ctx.layout, ctx.made = layout, neighbours.results()
        state = made[-1] if branch is not None else partial
        ctx.save_for_backward(statistics, state, key, norm_weight, norm_bias, inter, log_sum, *blocks)
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        layout: _Layout = ctx.layout
        statistics, partial, key, norm_weight, norm_bias, inter, log_sum, *blocks = ctx.saved_tensors
        parts = ReadParts(inter, log_sum, blocks[: layout.sources], blocks[layout.sources :], partial, key)
        neighbours = with_tensors(layout.neighbours, None, norm_weight, norm_bias)
        given, adds = of_outputs(ctx.made, grads), ctx.made[2]
        read_grad, scalars, *others = GENERATED_READ_BACKWARD(
            ReadBackward(given, statistics, parts, adds, neighbours, layout.form, layout.dtype)
        )
        rest = list(others)  # the Dynamo of torch 2.11 takes it for a tuple
        to_partial, to_key = (rest.pop(0), rest.pop(0)) if partial is not None else (None, None)
        to_weight, to_bias = of_norm(rest, neighbours, given)
        of_links = [read_grad] * layout.links + [scalars.reshape(2, *read_grad.shape[:-1])] * layout.links
        to_branch = to_partial if adds else None
        of_blocks = [None] * len(blocks)
        return None, to_partial, to_branch, to_key, to_weight, to_bias, None, None, *of_links, *of_blocks


def with_tensors(
    neighbours: Neighbours, branch: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> Neighbours:
    """Neighbours with other tensors, since autograd takes no tensors within tuples.

    Args:
        neighbours: of which the rest is taken.
        branch, norm_weight, norm_bias: the tensors, or None.
    """
    return Neighbours(branch, neighbours.norm, neighbours.norm_eps, norm_weight, norm_bias, neighbours.returns_value)


def of_outputs(made: Sequence[bool], grads: Sequence[Tensor | None]) -> OutputGradients:
    """The gradients of the outputs that there are, by their names.

    Args:
        made: whether the value, the normed value and the new partial sum are outputs.
        grads: of those that are.
    """
    given = list(grads)
    value_grad, normed_grad, partial_grad = [given.pop(0) if has else None for has in made]
    return OutputGradients(value_grad, normed_grad, partial_grad)


def of_norm(rest: list[Tensor], neighbours: Neighbours, given: OutputGradients) -> list[Tensor | None]:
    """The gradients of the norm's weight and bias in their dtypes, or None.

    Args:
        rest: the gradients that an operator returned, from that of the weight on.
        neighbours: of the read.
        given: gradients of its outputs.
    """
    vectors = neighbours.norm_weight, neighbours.norm_bias
    has_grad = given.normed_grad is not None
    return [rest.pop(0).to(x.dtype) if x is not None and has_grad else None for x in vectors]


@described_by(GENERATED_LOGITS)
def source_logits(source: Tensor, matrix: Tensor, first: int, eps: float) -> Tensor:
    """Logits of a completed block; they carry no gradient, which `link_sources` gives the source and the keys.

    Args:
        source: the block `[*, d]`.
        matrix: `[R, d]` of `keys.key_matrix`.
        first: the first read that attends to it.
        eps: of the key norm.

    Returns:
        `[*, R - first]` in fp32.
    """
    logits: Tensor = GENERATED_LOGITS(Logits(source.detach(), matrix.detach(), first, eps))
    return logits


@described_by(GENERATED_BLOCK)
def complete_block(partial: Tensor, branch: Tensor, matrix: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """The block `partial + branch` and its logits, which carry no gradient.

    Args:
        partial, branch: the open partial sum and the last write of the block, `[*, d]`.
        matrix, first, eps: of `source_logits`.
    """
    block, logits = _CompleteBlock.apply(partial, branch, matrix.detach(), first, eps)  # type: ignore[no-untyped-call]
    return block, logits


@described_by(SOURCES_BACKWARD)
def link_sources(
    sources: Sequence[Tensor], logits: Sequence[Tensor], keys: Tensor, first: int, total: int, eps: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Tie completed blocks to the reads `first ..` of `total` that attend to them.

    Args:
        sources: blocks `[*, d]`, as handed on by the call before, if they were given to one.
        logits: of `source_logits`, one per source.
        keys: `[count, d]`, the matrix of this range of reads.
        first, total: number of its first read, and of all reads.
        eps: of the key norm.

    Returns:
        Two links per read, all of the first kind first, and the blocks handed on.
    """
    outputs = _LinkSources.apply(first, total, eps, keys, *sources, *logits)  # type: ignore[no-untyped-call]
    links = 2 * keys.shape[0]
    return list(outputs[:links]), list(outputs[links:])


@described_by(GENERATED_PHASE_1)
def phase_1(sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int) -> list[Tensor]:
    """Phase 1 of a group of reads; the results carry no gradient.

    Args:
        sources, logits, first, count, total: of `scheduled.inter_block`.

    Returns:
        `count` outputs `[*, d]` in the dtype of the sources, fp32 of many sources; then `count` log-sum-exps `[*]`.
    """
    call = Phase1([x.detach() for x in sources], list(logits), first, count, total)
    *outputs, log_sums = GENERATED_PHASE_1(call)
    return [*outputs, *log_sums.unbind(0)]


@described_by(GENERATED_READ)
def read(
    links: Sequence[tuple[Sequence[Tensor], int]],
    parts: ReadParts,
    form: ReadForm,
    like: Tensor,
    neighbours: Neighbours = ALONE,
) -> tuple[Tensor, ...]:
    """One read with its neighbours (equations 2 to 6 of the paper; Algorithm 1 where it has phase 1's result).

    Args:
        links: per call of `link_sources` on blocks that it attends to, the links and its place among their reads.
        parts: what it attends to; inter and log_sum of `phase_1` for this read, the key its row of `keys.key_matrix`.
        form: which read it is, and how it is scaled.
        like: a source; the results have its dtype.
        neighbours: what its kernel computes beside it.

    Returns:
        The value, the normed value and the new partial sum `[*, d]`, those that there are.
    """
    branch, norm_weight, norm_bias = neighbours.branch, neighbours.norm_weight, neighbours.norm_bias
    without = with_tensors(neighbours, None, None, None)
    layout = _Layout(len(links), len(parts.sources), form, like.dtype, without)
    wide = [of_set[place] for of_set, place in links]
    scalars = [of_set[len(of_set) // 2 + place] for of_set, place in links]
    held = [x.detach() for x in parts.sources]
    vectors = parts.partial, branch, None if parts.partial is None else parts.key, norm_weight, norm_bias
    outputs: tuple[Tensor, ...] = _Read.apply(  # type: ignore[no-untyped-call]
        layout, *vectors, parts.inter, parts.log_sum, *wide, *scalars, *held, *parts.logits
    )
    return outputs
