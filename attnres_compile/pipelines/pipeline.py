"""``pipeline``: the stages and the schedule of this rank, for a model with Block Attention Residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from attnres_compile.api.prepare import config_from, prepare
from attnres_compile.model.optimizer_check import note_chunks
from attnres_compile.model.parameters import parameters_of, unwrapped
from attnres_compile.model.planned_config import FIXED_BY_PLAN, check_agrees
from attnres_compile.pipelines.agreement import Agreement, check_distributed
from attnres_compile.pipelines.build import Chunks, CutOptions, build_chunks, leaves_by_name
from attnres_compile.pipelines.chunk_module import ChunkModule, materialise
from attnres_compile.pipelines.errors import PipelineSupportError, StageError
from attnres_compile.pipelines.microbatches import Batch, batch_of
from attnres_compile.pipelines.rank import Pipeline, RunOptions
from attnres_compile.pipelines.schedules import ScheduleKind, check_schedule, schedule_kind
from attnres_compile.pipelines.torch_stage import check_torch
from attnres_passes.ir.config import AttnResConfig, Inner
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.transfers import Transfer


def pipeline(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_stages: int | None = None,
    virtual: int = 1,
    schedule: str = "Interleaved1F1B",
    microbatches: int,
    loss_fn: Callable[..., Any] | None = None,
    transfer: Transfer | str = Transfer.CACHED,
    cut_points: Sequence[str] | None = None,
    scale_grads: bool = True,
    device: torch.device | str | None = None,
    group: dist.ProcessGroup | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    config: AttnResConfig | None = None,
    **options: Any,
) -> Pipeline:
    """Cut ``model`` into chunks and give this rank its own; every rank of the pipeline calls it, with equal arguments.

    A model that is not prepared is prepared. The chunks hold the very parameters of ``model``; drop the model to free
    those of other ranks, or make it on "meta", and load a state dict into the pipeline.

    Args:
        args, kwargs: example inputs of one whole batch; each tensor has the batch first, and is split there.
        num_stages: ranks of the pipeline, P; those of ``group`` by default. virtual: chunks per rank, V.
        schedule: "GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS"; with ``inner="eager"`` also "InterleavedZeroBubble",
            "ZBVZeroBubble", "DualPipeV".
        microbatches: that a batch is split into.
        loss_fn: ``loss_fn(output, target)`` of a micro-batch; without it only ``evaluate`` works.
        transfer: "cached" (paper, section 4.1) or "naive".
        cut_points: path of the first module of every chunk but the first; balanced by FLOPs without them.
        scale_grads: divide gradients by the number of micro-batches, for losses that are means.
        device: where the chunks run; that of the model by default, and needed for a model on "meta".
        wrap: called with each chunk's module, such as for DistributedDataParallel over replicas of the pipeline.
        config, options: those of ``prepare``; ``inner`` compiles each chunk. For a model that is prepared, all others
            must agree with its plan. (``schedule`` is the pipeline's here; that of the reads can be given in a config.)

    Raises:
        PipelineSupportError, PipelineBatchError, StageError, and what ``prepare`` raises, on the ranks they concern;
        PipelineMismatchError on all others.
    """
    check_torch()
    ranks = check_distributed(group, num_stages)
    model = unwrapped(model)
    target_device = _device(model, device)
    agreement = Agreement(group, target_device)
    made: tuple[Chunks, ScheduleKind, Batch, Inner] | None = None
    error: Exception | None = None
    try:
        kind = schedule_kind(schedule)
        layout = StageLayout(ranks, virtual, kind.order)
        batch = batch_of(leaves_by_name(args, kwargs or {}), microbatches)
        micro_args, micro_kwargs = batch.first_microbatch(args, kwargs or {}, _own_device(model))
        inner: Inner = _prepared(model, micro_args, micro_kwargs, config, options).inner
        check_schedule(kind, layout, microbatches, inner)
        points = None if cut_points is None else tuple(cut_points)
        cut = CutOptions(layout, transfer, points, target_device, kind.splits_backward, inner)
        made = build_chunks(model, micro_args, micro_kwargs, cut), kind, batch, inner
    except Exception as caught:  # raised again below, when the other ranks know
        error = caught
    words = "" if made is None else f"{made[0].digest} {kind.name} {microbatches} {made[3]} {scale_grads}"
    agreement.require_equal(words, error)
    assert made is not None
    chunks, kind, batch, inner = made
    modules = [ChunkModule(chunks.bodies[chunk.index], inner) for chunk in chunks.plan.of_rank(agreement.rank)]
    unset: set[str] = set()
    for module in modules:
        module.train(model.training)
        unset |= materialise(module, target_device)
    note_chunks(model, modules)
    return Pipeline(chunks, modules, agreement, RunOptions(kind, batch, loss_fn, scale_grads, wrap), unset)


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    own = _own_device(model)
    if device is not None:
        return torch.device(device)
    if own.type == "meta":
        raise PipelineSupportError('the model is on "meta"; give device=, where its chunks are to run.')
    return own


def _own_device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _prepared(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    config: AttnResConfig | None,
    options: Mapping[str, Any],
) -> AttnResConfig:
    """Prepare the model, or check that its plan is what the options say. Gives the config of the pipeline."""
    added = parameters_of(model)
    if added is None:
        prepare(model, args, kwargs, config=config, **options)
        added = parameters_of(model)
        if added is None:
            raise StageError(
                f"{type(model).__name__} has no residual stream that is rewritten, so there is none to cut."
            )
        return added.plan.config
    planned, given = added.plan.config, config_from(config, options)
    fixed = (*FIXED_BY_PLAN, "schedule")
    named = (*fixed, "inner") if config is not None else tuple(options)
    check_agrees(given, planned, [name for name in named if name in fixed])
    return dataclasses.replace(planned, inner=given.inner) if "inner" in named else planned
