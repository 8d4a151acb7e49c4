"""What one rank of a pipeline runs: its chunks under a schedule of torch, and its part of the model's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnres_compile.model import plan_tensor
from attnres_compile.model.errors import SavedStateError
from attnres_compile.pipelines.agreement import Agreement, naming_lost_peers
from attnres_compile.pipelines.build import Chunks, leaves_by_name
from attnres_compile.pipelines.chunk_module import (
    PLAN_TENSOR,
    ChunkModule,
    inputs_of,
    prepared_plan_of,
    tensors_of,
)
from attnres_compile.pipelines.errors import AttnResError, PipelineBatchError, PipelineSupportError
from attnres_compile.pipelines.microbatches import Batch
from attnres_compile.pipelines.schedules import ScheduleKind, make_schedule
from attnres_compile.pipelines.store import BlockStore
from attnres_compile.pipelines.torch_stage import ChunkStage, without_loss
from attnres_passes.ranks.plan_text import stage_picture, stage_table
from attnres_passes.ranks.transfers import StagePlan


@dataclass(frozen=True)
class RunOptions:
    """How the chunks of a rank run. batch: what a step is given; the others are those of ``pipeline``."""

    kind: ScheduleKind
    batch: Batch
    loss_fn: Callable[..., Any] | None
    scale_grads: bool
    wrap: Callable[[nn.Module], nn.Module] | None


class Pipeline:
    """One rank's part of a model.

    plan: of the whole pipeline; modules: the chunks of this rank, which own its parameters under their names in the
    model; stages, schedule: torch's, over ``modules`` or what ``wrap`` made of them.
    """

    def __init__(
        self,
        chunks: Chunks,
        modules: Sequence[ChunkModule],
        agreement: Agreement,
        options: RunOptions,
        unset: set[str],
    ) -> None:
        self.plan: StagePlan = chunks.plan
        self.modules = tuple(modules)
        self.store = BlockStore()
        self._options, self._agreement, self._unset = options, agreement, set(unset)
        own = chunks.plan.of_rank(agreement.rank)
        self.is_first = own[0].index == 0
        self.is_last = any(chunk.index == len(chunks.plan.chunks) - 1 for chunk in own)
        self.stages = tuple(
            ChunkStage(
                options.wrap(module) if options.wrap is not None else module,
                chunk,
                chunks,
                self.store,
                agreement,
                options.kind.splits_backward,
            )
            for chunk, module in zip(own, modules, strict=True)
        )
        self.has_loss = options.loss_fn is not None
        self.schedule = make_schedule(
            options.kind, self.stages, options.batch.count, options.loss_fn, options.scale_grads
        )
        self._wanted = set().union(*(inputs_of(module) for module in modules))

    def step(self, *args: Any, target: Tensor | None = None, losses: list[Tensor] | None = None, **kwargs: Any) -> Any:
        """Forward and backward of one batch, on every rank; gradients are in the parameters afterwards.

        Args:
            args, kwargs: the model's inputs for the whole batch, equal on every rank.
            target: for the loss, on the rank with the last chunk; others may leave it out.
            losses: filled with one loss per micro-batch on that rank.

        Returns:
            The model's output on the rank with the last chunk (a tensor, or a tuple of all that the model returns, in
            order); None on others.

        Raises:
            PipelineBatchError on the rank whose inputs are wrong, and PipelineMismatchError on the others.
        """
        inputs = self._agreed("step", args, kwargs, target, self._step_error(target))
        with naming_lost_peers(self._agreement.rank):
            output = self.schedule.step(target=target, losses=losses, **inputs)
        self.store.check_empty()
        return output

    def evaluate(
        self, *args: Any, target: Tensor | None = None, losses: list[Tensor] | None = None, **kwargs: Any
    ) -> Any:
        """The forward alone, in evaluation mode and without gradients.

        Args:
            args, kwargs, losses: those of ``step``.
            target: for the loss, which is not computed without it.

        Returns:
            What ``step`` returns.

        Raises:
            PipelineSupportError: torch's schedule has no run without a backward.
            PipelineBatchError, PipelineMismatchError: those of ``step``.
        """
        kind, error = self._options.kind, None
        if not kind.can_evaluate:
            error = PipelineSupportError(
                f"torch's {kind.name} cannot run without a backward; evaluate with a pipeline on Interleaved1F1B."
            )
        inputs = self._agreed("evaluate", args, kwargs, target, error)
        modes = [module.training for module in self.modules]
        try:
            for module in self.modules:
                module.eval()
            with torch.no_grad(), naming_lost_peers(self._agreement.rank):
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
        SavedStateError if something of this rank is missing, has another shape or was trained with another plan;
        nothing is loaded then. A state dict of version 0.1.0 names no plan: it is loaded with a warning.
        """
        self._check_plan(state)
        saved = {name for module in self.modules for name in module.state_dict()}
        own = [(name, value) for module in self.modules for name, value in tensors_of(module)]
        shapes = {name: value.shape for name, value in own}
        wrong = [
            name for name in sorted(saved - {PLAN_TENSOR}) if name not in state or state[name].shape != shapes[name]
        ]
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

    def _check_plan(self, state: Mapping[str, Tensor]) -> None:
        plan, given = prepared_plan_of(self.modules[0]), state.get(PLAN_TENSOR)
        if given is not None:
            plan_tensor.check_given(given, plan)
        else:
            plan_tensor.warn_of_no_plan(plan, PLAN_TENSOR)

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
        error = error or self._options.batch.error_of(given, self._wanted, target if self.is_last else None)
        self._agreement.require_equal_briefly(call, error)
        return {name: given[name] for name in sorted(self._wanted)}
