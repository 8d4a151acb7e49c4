"""``pipeline``: the stages and the schedule of this rank, for a model with Block Attention Residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnres_compile.api.prepare import config_from, prepare
from attnres_compile.compile.backend import MEANING
from attnres_compile.model.errors import SavedStateError
from attnres_compile.model.parameters import parameters_of, unwrapped
from attnres_compile.pipelines.agreement import Agreement, check_distributed, named_peers
from attnres_compile.pipelines.build import Chunks, Cutting, build_chunks, leaves_by_name
from attnres_compile.pipelines.chunk_module import ChunkModule, inputs_of, materialise, tensors_of
from attnres_compile.pipelines.errors import AttnResError, PipelineBatchError, PipelineSupportError, StageError
from attnres_compile.pipelines.microbatches import Batch, batch_of
from attnres_compile.pipelines.schedules import ScheduleKind, check_schedule, make_schedule, schedule_kind
from attnres_compile.pipelines.store import BlockStore
from attnres_compile.pipelines.torch_stage import ChunkStage, check_torch, without_loss
from attnres_passes.ir.config import AttnResConfig, ConfigError
from attnres_passes.ranks.stage_layout import StageLayout
from attnres_passes.ranks.stage_text import stage_picture, stage_table
from attnres_passes.ranks.transfers import StagePlan, Transfer


class Pipeline:
    """One rank's part of a model.

    plan: of the whole pipeline; modules: the chunks of this rank, which own its parameters under their names in the
    model; stages, schedule: torch's, over ``modules`` or what ``wrap`` made of them.
    """

    def __init__(
        self,
        chunks: Chunks,
        modules: Sequence[ChunkModule],
        kind: ScheduleKind,
        batch: Batch,
        agreement: Agreement,
        loss_fn: Callable[..., Any] | None,
        scale_grads: bool,
        wrap: Callable[[nn.Module], nn.Module] | None,
        unset: set[str],
    ) -> None:
        self.plan: StagePlan = chunks.plan
        self.modules = tuple(modules)
        self.store = BlockStore()
        self._kind, self._batch, self._agreement = kind, batch, agreement
        own = chunks.plan.of_rank(agreement.rank)
        self.is_first = own[0].index == 0
        self.is_last = any(chunk.index == len(chunks.plan.chunks) - 1 for chunk in own)
        self.stages = tuple(
            ChunkStage(
                wrap(module) if wrap is not None else module,
                chunk,
                len(chunks.plan.chunks),
                agreement.device,
                self.store,
                arrives=tuple(chunks.examples[chunk.index][key] for key in chunk.arrives),
                sends=_sends(chunks, chunk.index),
                last_reads=tuple(
                    key for key in chunk.cached if not any(key in later.cached for later in own[place + 1 :])
                ),
                splits_backward=kind.splits_backward,
                group=agreement.group,
            )
            for place, (chunk, module) in enumerate(zip(own, modules, strict=True))
        )
        self.has_loss = loss_fn is not None
        self.schedule = make_schedule(kind, self.stages, batch.count, loss_fn, scale_grads)
        self._wanted = set().union(*(inputs_of(module) for module in modules))
        self._unset = set(unset)

    def step(self, *args: Any, target: Tensor | None = None, losses: list[Tensor] | None = None, **kwargs: Any) -> Any:
        """Forward and backward of one batch, on every rank; gradients are in the parameters afterwards.

        Args:
            args, kwargs: the model's inputs for the whole batch, the same on every rank.
            target: for the loss, on the rank with the last chunk; others may leave it out.
            losses: filled with one loss per micro-batch on that rank.

        Returns:
            The model's output on the rank with the last chunk (a tensor, or a tuple of all that the model returns, in
            order); None on others.

        Raises:
            PipelineBatchError on the rank whose inputs are wrong, and PipelineMismatchError on the others.
        """
        inputs = self._agreed("step", args, kwargs, target, self._step_error(target))
        with named_peers(self._agreement.rank):
            output = self.schedule.step(target=target, losses=losses, **inputs)
        self.store.check_empty()
        return output

    def evaluate(
        self, *args: Any, target: Tensor | None = None, losses: list[Tensor] | None = None, **kwargs: Any
    ) -> Any:
        """The forward alone, in evaluation mode and without gradients; arguments and result as for ``step``.

        Without a target no loss is computed.

        Raises:
            PipelineSupportError: torch's schedule has no run without a backward. PipelineBatchError and
            PipelineMismatchError as ``step``.
        """
        error = None
        if not self._kind.can_evaluate:
            error = PipelineSupportError(
                f"torch's {self._kind.name} cannot run without a backward; evaluate with a pipeline on Interleaved1F1B."
            )
        inputs = self._agreed("evaluate", args, kwargs, target, error)
        modes = [module.training for module in self.modules]
        try:
            for module in self.modules:
                module.eval()
            with torch.no_grad(), named_peers(self._agreement.rank):
                if target is None:
                    with without_loss(self.schedule):
                        output = self.schedule.eval(**inputs)
                else:
                    output = self.schedule.eval(target=target, losses=losses, **inputs)
        finally:
            for module, mode in zip(self.modules, modes, strict=True):
                module.train(mode)
        self.store.check_empty()
        return output

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of this rank, under their names in the model."""
        for module in self.modules:
            yield from module.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of this rank, for an optimizer."""
        for _, parameter in self.named_parameters():
            yield parameter

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of the model's state dict."""
        return {name: value for module in self.modules for name, value in module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load this rank's part of the model's state dict, whole or already a part; what others hold is passed over.

        After a capture on "meta", ``state`` must also name the buffers that no state dict holds. Raises
        SavedStateError if something of this rank is missing or has another shape; nothing is loaded then.
        """
        saved = {name for module in self.modules for name in module.state_dict()}
        own = [(name, value) for module in self.modules for name, value in tensors_of(module)]
        shapes = {name: value.shape for name, value in own}
        wrong = [name for name in sorted(saved) if name not in state or state[name].shape != shapes[name]]
        if wrong:
            raise SavedStateError(
                f"{', '.join(wrong[:4])} {'and others ' if len(wrong) > 4 else ''}of this rank are missing or have "
                "another shape; give the state dict of the prepared model, with its AttnRes parameters."
            )
        with torch.no_grad():
            for name, value in own:
                if name in state:
                    value.copy_(state[name])
        self._unset -= set(state)

    def __str__(self) -> str:
        return f"{stage_table(self.plan)}\n\n{stage_picture(self.plan)}"

    def _step_error(self, target: Tensor | None) -> AttnResError | None:
        if not self.has_loss:
            return PipelineBatchError("the pipeline was made without loss_fn, so it cannot train; give one.")
        if self.is_last and target is None:
            return PipelineBatchError("target is missing on the rank with the last chunk; give it there.")
        return None

    def _agreed(
        self,
        call: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        target: Tensor | None,
        error: AttnResError | None,
    ) -> dict[str, Any]:
        """This rank's inputs of the model, once all ranks have found theirs to be right."""
        given = leaves_by_name(args, kwargs)
        if error is None and self._unset:
            error = PipelineSupportError(
                f'{", ".join(sorted(self._unset)[:4])} and others of a model captured on "meta" have no value yet; '
                "call load_state_dict on the pipeline with all of them."
            )
        error = error or self._batch.error_of(given, self._wanted, target if self.is_last else None)
        self._agreement.on_step(call, error)
        return {name: given[name] for name in sorted(self._wanted)}


def _sends(chunks: Chunks, index: int) -> tuple[Tensor, ...]:
    if index + 1 == len(chunks.plan.chunks):
        return chunks.outputs
    return tuple(chunks.examples[index + 1][key] for key in chunks.plan.chunks[index].sends)


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
        config, options: as for ``prepare``; ``inner`` compiles each chunk. For a model that is prepared, all others
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
    made: tuple[Chunks, ScheduleKind, Batch, str] | None = None
    error: Exception | None = None
    try:
        kind = schedule_kind(schedule)
        layout = StageLayout(ranks, virtual, kind.order)
        batch = batch_of(leaves_by_name(args, kwargs or {}), microbatches)
        micro_args, micro_kwargs = batch.first(args, kwargs or {}, _own_device(model))
        inner: str = _prepared(model, micro_args, micro_kwargs, config, options).inner
        check_schedule(kind, layout, microbatches, inner)
        points = None if cut_points is None else tuple(cut_points)
        cutting = Cutting(layout, transfer, points, target_device, kind.splits_backward, inner)
        made = build_chunks(model, micro_args, micro_kwargs, cutting), kind, batch, inner
    except Exception as caught:  # raised again below, when the other ranks know
        error = caught
    words = "" if made is None else f"{made[0].digest} {kind.name} {microbatches} {made[3]} {scale_grads}"
    agreement.on_words(words, error)
    assert made is not None
    chunks, kind, batch, inner = made
    modules = [ChunkModule(chunks.bodies[chunk.index], inner) for chunk in chunks.plan.of_rank(agreement.rank)]
    unset: set[str] = set()
    for module in modules:
        module.train(model.training)
        unset |= materialise(module, target_device)
    return Pipeline(chunks, modules, kind, batch, agreement, loss_fn, scale_grads, wrap, unset)


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
    named = (*MEANING, "schedule", "inner") if config is not None else tuple(options)
    for name in named:
        if name in (*MEANING, "schedule") and getattr(given, name) != getattr(planned, name):
            raise ConfigError(
                f"{name}={getattr(given, name)!r} contradicts the plan that the model was prepared with "
                f"({name}={getattr(planned, name)!r}); leave it out, or unprepare the model and prepare it anew."
            )
    return dataclasses.replace(planned, inner=given.inner) if "inner" in named else planned
