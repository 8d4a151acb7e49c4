"""The schedules of torch.distributed.pipelining that a pipeline may run on, and what each of them asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attnres_compile.pipelines.errors import PipelineSupportError
from attnres_kernels.errors import closest
from attnres_passes.ranks.layout import StageLayout, StageOrder


@dataclass(frozen=True)
class ScheduleKind:
    """A schedule of torch. name: the user's; class_name: torch's.

    takes_one: a rank has one chunk; order: how chunks lie on ranks; splits_backward: it runs the backward of inputs and
    weights apart, which torch does not do with compiled stages; can_evaluate: it has a run without a backward.
    """

    name: str
    class_name: str
    takes_one: bool = False
    order: StageOrder = StageOrder.LOOP
    splits_backward: bool = False
    can_evaluate: bool = True


KINDS = (
    ScheduleKind("GPipe", "ScheduleGPipe", takes_one=True),
    ScheduleKind("1F1B", "Schedule1F1B", takes_one=True),
    ScheduleKind("Interleaved1F1B", "ScheduleInterleaved1F1B"),
    ScheduleKind("LoopedBFS", "ScheduleLoopedBFS"),
    ScheduleKind("InterleavedZeroBubble", "ScheduleInterleavedZeroBubble", splits_backward=True),
    ScheduleKind(
        "ZBVZeroBubble", "ScheduleZBVZeroBubble", order=StageOrder.V, splits_backward=True, can_evaluate=False
    ),
    ScheduleKind("DualPipeV", "ScheduleDualPipeV", order=StageOrder.V, splits_backward=True, can_evaluate=False),
)


def schedule_kind(name: str) -> ScheduleKind:
    """The schedule of a name, in any case. Raises PipelineSupportError."""
    for kind in KINDS:
        if kind.name.lower() == str(name).lower():
            return kind
    names = [kind.name for kind in KINDS]
    close = closest(str(name), names)
    hint = f"; did you mean {close[0]!r}?" if close else "; take one of them."
    raise PipelineSupportError(f"schedule={name!r} is not one of {', '.join(map(repr, names))}{hint}")


def check_schedule(kind: ScheduleKind, layout: StageLayout, microbatches: int, inner: str) -> None:
    """Check the limits of a schedule.

    Args:
        kind: the schedule.
        layout: chunks on ranks.
        microbatches: that a batch is split into.
        inner: what compiles the chunks.

    Raises:
        PipelineSupportError: the first limit that is broken.
    """
    rounds = max(1, microbatches // layout.ranks)
    limits: Sequence[tuple[bool, str]] = (
        (microbatches < 1, f"microbatches={microbatches} is not at least 1; give one or more"),
        (
            kind.takes_one and layout.virtual != 1,
            f"{kind.name} runs one chunk per rank, and virtual={layout.virtual}; take virtual=1, or Interleaved1F1B",
        ),
        (
            kind.order is StageOrder.V and layout.virtual != 2,
            f"{kind.name} runs two chunks per rank, and virtual={layout.virtual}; take virtual=2",
        ),
        (
            kind.name in ("1F1B", "DualPipeV") and microbatches < layout.chunks,
            f"{kind.name} needs at least as many micro-batches as chunks, {layout.chunks}, and "
            f"microbatches={microbatches}; take more",
        ),
        (
            kind.name in ("Interleaved1F1B", "InterleavedZeroBubble") and microbatches % rounds != 0,
            f"{kind.name} needs a multiple of {rounds} micro-batches (its rounds), and microbatches={microbatches}; "
            f"take a multiple of the {layout.ranks} ranks",
        ),
        (
            kind.splits_backward and inner != "eager",
            f"{kind.name} runs the backward of inputs and weights apart, which compiled stages cannot (inner={inner!r})"
            '; take inner="eager", or Interleaved1F1B',
        ),
    )
    for is_broken, message in limits:
        if is_broken:
            raise PipelineSupportError(f"{message}.")


def make_schedule(
    kind: ScheduleKind,
    stages: Sequence[Any],
    microbatches: int,
    loss_fn: Callable[..., Any] | None,
    scale_grads: bool,
) -> Any:
    """torch's schedule.

    Args:
        kind: which one.
        stages: of this rank, one a chunk.
        microbatches, loss_fn, scale_grads: those of ``pipeline``.
    """
    from torch.distributed.pipelining import schedules

    made = getattr(schedules, kind.class_name)
    given = stages[0] if kind.takes_one else list(stages)
    return made(given, microbatches, loss_fn=loss_fn, scale_grads=scale_grads)
