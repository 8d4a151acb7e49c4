"""Activation checkpointing inside chunks, where a schedule needs what torch cannot compute again twice.

The regions of a model are opened before it is cut, and closed in each chunk, a region that is cut in both of its
chunks. Torch computes a checkpoint again once, where schedules that split the backward need it twice.
"""

from __future__ import annotations

from torch.fx import GraphModule

from attnres_compile.pipelines.errors import PipelineSupportError
from attnres_passes.ir import provenance
from attnres_passes.ir.regions import region_of


def check_checkpoints(gm: GraphModule, splits_backward: bool) -> None:
    """Check that what is computed again is computed once.

    Args:
        gm: of the whole model, its regions open.
        splits_backward: whether the backward of inputs and weights runs apart.

    Raises:
        PipelineSupportError: a checkpoint in a schedule that splits the backward.
    """
    if not splits_backward:
        return
    for node in gm.graph.nodes:
        if region_of(node) is not None:
            where = provenance.module_path(node) or "the model"
            raise PipelineSupportError(
                f"{where} is under torch.utils.checkpoint, which cannot be recomputed for inputs and weights apart; "
                "turn checkpointing off, or take the schedule Interleaved1F1B."
            )
