"""The scheduled level on generated kernels, as functions that a graph pass calls, with gradients.

How gradients get from a read to the blocks it attends to. Each set of blocks that a group of reads shares is tied to
those reads by `link_sources`: per read it hands out two *links*, tensors without memory of their own, which the read
takes as inputs and does not look at. A read's backward gives as their gradients `h`, the gradient of its weighted sum,
and two numbers per token, with which the backward of `link_sources` makes the gradients of all its blocks and keys from
all its reads at once (see `generated.sources_backward`). `link_sources` hands its blocks on, too: given to the next
group's, the contributions of later groups arrive as gradients that are added in the same kernel. So a block gets one
gradient from all its readers, without a chain of sums, whichever way the reads are grouped.

Phase 1's outputs have no gradients of their own. They are made of blocks that are kept anyway, so that a compiler may
make them again in the backward rather than keep them; the pass that calls `phase_1` marks it so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.operators import operators


class _CompleteBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, partial: Tensor, branch: Tensor, keys: Tensor, first: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        block, logits = operators.block_op(partial, branch, keys, first, eps)
        ctx.mark_non_differentiable(logits)
        return block, logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return grads[0], grads[0], None, None, None


class _LinkSources(torch.autograd.Function):
    @staticmethod
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
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        first, total, eps, count = ctx.layout
        keys, *tensors = ctx.saved_tensors
        blocks = len(tensors) // 2
        scalars = [None if x is None else x.reshape(2, -1) for x in grads[count : 2 * count]]
        *source_grads, key_grads = operators.sources_backward_op(
            list(grads[:count]),
            scalars,
            list(grads[2 * count :]),
            tensors[:blocks],
            tensors[blocks:],
            keys,
            first,
            total,
            eps,
        )
        return None, None, None, key_grads, *source_grads, *([None] * blocks)


@dataclass(frozen=True)
class ReadForm:
    """What a read is, apart from its tensors.

    links: sets of blocks that it is linked to; sources: blocks in place; number, total: which read of how many; factor:
    of the result; eps: of the key norm; dtype: of the result; norm, norm_eps: the norm behind, "rms", "layer" or None;
    returns_value: whether the value before the norm is wanted.
    """

    links: int
    sources: int
    number: int
    total: int
    factor: float
    eps: float
    dtype: torch.dtype
    norm: str | None = None
    norm_eps: float = 0.0
    returns_value: bool = True


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: ReadForm,
        partial: Tensor | None,
        branch: Tensor | None,
        key: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        inter: Tensor | None,
        log_sum: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        blocks = tensors[2 * form.links :]
        sources, logits = list(blocks[: form.sources]), list(blocks[form.sources :])
        *made, statistics = operators.read_op(
            inter,
            log_sum,
            sources,
            logits,
            partial,
            key,
            branch,
            form.norm,
            form.norm_eps,
            norm_weight,
            norm_bias,
            form.returns_value,
            form.number,
            form.total,
            form.factor,
            form.eps,
            form.dtype,
        )
        ctx.form, ctx.adds = form, branch is not None
        state = made[-1] if branch is not None else partial
        ctx.save_for_backward(statistics, state, key, norm_weight, norm_bias, inter, log_sum, *blocks)
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        form: ReadForm = ctx.form
        statistics, partial, key, norm_weight, norm_bias, inter, log_sum, *blocks = ctx.saved_tensors
        given = list(grads)
        value_grad = given.pop(0) if form.returns_value else None
        normed_grad = given.pop(0) if form.norm is not None else None
        partial_grad = given.pop(0) if ctx.adds else None
        read_grad, scalars, *others = operators.read_backward_op(
            value_grad,
            normed_grad,
            partial_grad,
            statistics,
            inter,
            log_sum,
            blocks[: form.sources],
            blocks[form.sources :],
            partial,
            key,
            ctx.adds,
            form.norm,
            form.norm_eps,
            norm_weight,
            norm_bias,
            form.returns_value,
            form.number,
            form.total,
            form.factor,
            form.dtype,
        )
        rest = list(others)  # the Dynamo of torch 2.11 takes it for a tuple
        to_partial, to_key = (rest.pop(0), rest.pop(0)) if partial is not None else (None, None)
        to_weight, to_bias = (
            rest.pop(0).to(x.dtype) if x is not None and normed_grad is not None else None
            for x in (norm_weight, norm_bias)
        )
        of_links = [read_grad] * form.links + [scalars.reshape(2, *read_grad.shape[:-1])] * form.links
        to_branch = to_partial if ctx.adds else None
        of_blocks = [None] * len(blocks)
        return None, to_partial, to_branch, to_key, to_weight, to_bias, None, None, *of_links, *of_blocks


def source_logits(source: Tensor, matrix: Tensor, first: int, eps: float) -> Tensor:
    """As `scheduled.source_logits`; carries no gradient, which `link_sources` gives the source and the keys."""
    logits: Tensor = operators.logits_op(source.detach(), matrix.detach(), first, eps)
    return logits


def complete_block(partial: Tensor, branch: Tensor, matrix: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """As `scheduled.complete_block`; the logits carry no gradient."""
    block, logits = _CompleteBlock.apply(partial, branch, matrix.detach(), first, eps)  # type: ignore[no-untyped-call]
    return block, logits


def link_sources(
    sources: Sequence[Tensor], logits: Sequence[Tensor], keys: Tensor, first: int, total: int, eps: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Tie completed blocks to the reads `first ..` of `total` that attend to them.

    Args:
        sources: blocks `[*, d]`, as handed on by the call before, if they were given to one.
        logits: of `source_logits`, one per source.
        keys: `[count, d]`, the matrix of this range of reads.

    Returns:
        Two links per read, all of the first kind first, and the blocks handed on.
    """
    outputs = _LinkSources.apply(first, total, eps, keys, *sources, *logits)  # type: ignore[no-untyped-call]
    links = 2 * keys.shape[0]
    return list(outputs[:links]), list(outputs[links:])


def phase_1(sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int) -> list[Tensor]:
    """As `scheduled.inter_block`; the results carry no gradient."""
    *outputs, log_sums = operators.phase_1_op([x.detach() for x in sources], list(logits), first, count, total)
    return [*outputs, *log_sums.unbind(0)]


def read(
    links: Sequence[Sequence[Tensor]],
    position: Sequence[int],
    inter: Tensor | None,
    log_sum: Tensor | None,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    key: Tensor | None,
    number: int,
    total: int,
    factor: float,
    eps: float,
    like: Tensor,
    branch: Tensor | None = None,
    norm: str | None = None,
    norm_eps: float = 0.0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    returns_value: bool = True,
) -> tuple[Tensor, ...]:
    """One read, as `scheduled.fused_merge` and `scheduled.fused_direct_read`.

    Args:
        links: of all calls of `link_sources` for blocks that it attends to; position: its place among their reads.
        inter, log_sum: of `phase_1` for this read, or None.
        sources, logits: blocks in place; key: the row of this read; like: a source; all others as in `scheduled`.

    Returns:
        The value, the normed value and the new partial sum `[*, d]`, those that there are.
    """
    form = ReadForm(
        len(links), len(sources), number, total, factor, eps, like.dtype, norm, norm_eps, returns_value or norm is None
    )
    wide = [of_set[place] for of_set, place in zip(links, position, strict=True)]
    scalars = [of_set[len(of_set) // 2 + place] for of_set, place in zip(links, position, strict=True)]
    key = None if partial is None else key
    held = [x.detach() for x in sources]
    outputs: tuple[Tensor, ...] = _Read.apply(  # type: ignore[no-untyped-call]
        form, partial, branch, key, norm_weight, norm_bias, inter, log_sum, *wide, *scalars, *held, *logits
    )
    return outputs
