"""One read with own logits from tensors to tensors, its neighbours fused, and its backward; one launch each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attnres_kernels.definition.read_parts import ALONE, Neighbours, OutputGradients, OwnLogitsParts, ReadParts
from attnres_kernels.generation.own_logits_read import own_logits_read_text, statistics_of
from attnres_kernels.generation.own_logits_read_backward import own_logits_read_backward_text
from attnres_kernels.generation.specs import OwnLogitsReadBackwardSpec, OwnLogitsReadSpec
from attnres_kernels.launch import candidates, own_logits_tiling, rows
from attnres_kernels.launch.launch_read import ReadResult, read_spec, through_norm
from attnres_kernels.launch.load_triton import launchable


def own_logits_spec(parts: OwnLogitsParts, neighbours: Neighbours) -> OwnLogitsReadSpec:
    """What ``own_logits_read`` launches.

    Args:
        parts, neighbours: of the read; of the tensors only the shapes count.
    """
    spec = read_spec(ReadParts(sources=parts.sources, partial=parts.partial), neighbours)
    return own_logits_tiling.forward_spec(spec, parts.values()[0].shape[-1])


def own_logits_backward_spec(
    parts: OwnLogitsParts, grads: OutputGradients, neighbours: Neighbours
) -> OwnLogitsReadBackwardSpec:
    """What ``own_logits_read_backward`` launches.

    Args:
        parts, grads, neighbours: of that function; of the tensors only the shapes count.
    """
    behind, grads = through_norm(neighbours, grads)
    behind = behind._replace(branch=None, returns_value=grads.value_grad is not None)
    forward = read_spec(ReadParts(sources=parts.sources, partial=parts.partial), behind)
    has_grads = (grad is not None for grad in grads)
    return own_logits_tiling.backward_spec(forward, parts.values()[0].shape[-1], *has_grads)


def own_logits_read(parts: OwnLogitsParts, factor: float, eps: float, neighbours: Neighbours = ALONE) -> ReadResult:
    """One read (equations 1 to 6 of the paper; ``generation.own_logits_read``).

    Args:
        parts: what it attends to.
        factor: 1, or the number of sources for ``scale="sum"``.
        eps: of the key norm.
        neighbours: what its kernel computes beside it.

    Returns:
        Results whose statistics are ``[rows, statistics_of]``.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    rows.check(*parts.values())
    flat = [rows.rows_of(x) for x in parts.values()]
    (count, width), dtype = flat[0].shape, flat[0].dtype
    added = None if neighbours.branch is None else rows.rows_of(neighbours.branch)
    spec = own_logits_spec(parts, neighbours)
    result = ReadResult.new(neighbours, flat[0], dtype, statistics_of(spec.read))
    if count == 0:
        return result
    others = [parts.query.contiguous(), parts.key_weight.contiguous(), added]
    others += [neighbours.norm_weight, neighbours.norm_bias, *result.written()]
    kernel = launchable(own_logits_read_text(spec), candidates.own_logits_read(width, dtype))
    kernel[(count,)](
        *flat,
        *(x for x in others if x is not None),
        count,
        width,
        *(x.stride(0) for x in flat),
        *([] if added is None else [added.stride(0)]),
        factor=factor,
        eps=eps,
        norm_eps=neighbours.norm_eps,
    )
    return result


@dataclass(frozen=True)
class OwnLogitsGradients:
    """What the backward of a read with its own logits gives.

    sources: of each source ``[rows, d]``, the partial sum, whose gradient is the branch's too, last; key,
    norm_weight, norm_bias: ``[d]`` in fp32; None where there is no such input.
    """

    sources: list[Tensor]
    key: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def own_logits_read_backward(
    parts: OwnLogitsParts, statistics: Tensor, factor: float, grads: OutputGradients, neighbours: Neighbours = ALONE
) -> OwnLogitsGradients:
    """Gradients of ``own_logits_read`` from those of its outputs (``generation.own_logits_read_backward``).

    Args:
        parts: as given to it, but the partial sum is the one that was read: the new one, with a branch.
        statistics: of it.
        factor: as given to it.
        grads: of its outputs.
        neighbours: as given to it, the branch aside.
    """
    flat = [rows.rows_of(x) for x in parts.values()]
    count, width = flat[0].shape
    behind, grads = through_norm(neighbours, grads)
    given = [None if grad is None else rows.rows_of(grad) for grad in grads]
    spec = own_logits_backward_spec(parts, grads, behind)
    programs, rows_per_program = own_logits_tiling.shares(flat[0])
    source_grads = [rows.new(x, (count, width), x.dtype) for x in flat]
    sums = rows.sums(flat[0], programs, (True, spec.forward.has_weight, spec.forward.has_bias))
    if count > 0:
        others = [parts.query.contiguous(), parts.key_weight.contiguous(), behind.norm_weight, statistics]
        others += [*given, *source_grads, *sums]
        kernel = launchable(
            own_logits_read_backward_text(spec), candidates.own_logits_read_backward(width, flat[0].dtype)
        )
        kernel[(programs,)](
            *flat,
            *(x for x in others if x is not None),
            count,
            width,
            rows_per_program,
            0,
            *(x.stride(0) for x in flat),
            *(grad.stride(0) for grad in given if grad is not None),
            factor=factor,
        )
    of_key, of_weight, of_bias = (None if x is None else x.sum(0) for x in sums)
    assert of_key is not None
    return OwnLogitsGradients(source_grads, of_key, of_weight, of_bias)
