"""Activation checkpointing inside chunks: where torch would recompute something else than it computed.

Dynamo keeps ``torch.utils.checkpoint`` as one node that holds a graph. Run eagerly, that node recomputes its graph
without the random state of the forward (a compiler sees to that), so a dropout inside would draw another mask in the
backward. And it can be recomputed once only, where schedules that split the backward need it twice.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from attnres_compile.pipelines.errors import PipelineSupportError
from attnres_passes.analyses.aten_trace import AtenTrace, Op
from attnres_passes.ir import provenance
from attnres_passes.torch_private.operators import is_higher_order, is_operator


def check_checkpoints(trace: AtenTrace, inner: str, splits_backward: bool) -> None:
    """Check that what is recomputed is what was computed.

    Args:
        trace: of the whole model.
        inner: what compiles the chunks.
        splits_backward: whether the backward of inputs and weights runs apart.

    Raises:
        PipelineSupportError: a checkpoint whose gradients would be wrong.
    """
    for op in trace.ops:
        node = trace.nodes[op.node]
        if not _is_checkpoint(node):
            continue
        where = provenance.module_path(node) or "the model"
        if splits_backward:
            raise PipelineSupportError(
                f"{where} is under torch.utils.checkpoint, which cannot be recomputed for inputs and weights apart; "
                "turn checkpointing off, or take the schedule Interleaved1F1B."
            )
        if inner == "eager" and _is_random(op):
            raise PipelineSupportError(
                f"{where} is under torch.utils.checkpoint and draws random numbers, and eager stages would draw "
                'others in the backward; take inner="inductor", or set dropout to 0.'
            )


def _is_checkpoint(node: Node) -> bool:
    return is_higher_order(node.target) and "activation_checkpoint" in str(node.target)


def _is_random(op: Op) -> bool:
    """Whether an operation draws numbers; with a probability of zero, a dropout does not."""
    if not is_operator(op.target) or torch.Tag.nondeterministic_seeded not in op.target.tags:
        return False
    names = [argument.name for argument in op.target._schema.arguments]
    given = {**dict(zip(names, op.args, strict=False)), **op.kwargs}
    return all(given.get(name, 1.0) != 0.0 for name in ("p", "dropout_p"))
