"""Memory traffic of a form of the work: for ours counted by the definitions of the operators that it calls.

The unit is one ``[T, d]``. Left out are what is smaller by a factor of the width: logits and statistics ``[T]``,
parameters ``[d]``, and sums over tokens with one row per program; a fraction of the copy bandwidth is thus rather
counted too low.

Of a block, the first read has no partial sum, that of the second is the branch itself, and the add that completes the
block stands behind the last read, in the kernel that makes its logits. Backward, phase 1 is made again from the blocks
before the reads of its group, and the gradients of the blocks of a group come behind them.

The *ideal* form is what all other arms are charged with, so that their fractions compare times and nothing else: the
cheaper schedule, every tensor read once per phase, logits known as they are in a model. For one read it is one pass
each way, which a kernel that makes the logits itself does, too: sources and output, and backward sources, their
gradients and that of the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnres_kernels.definition.read_parts import ALONE, Neighbours, OutputGradients
from attnres_kernels.launch import tiling
from attnres_kernels.operators.definition import OperatorDefinition, Shaped
from attnres_kernels.operators.logits import GENERATED_BLOCK, GENERATED_LOGITS
from attnres_kernels.operators.phase_1 import GENERATED_PHASE_1
from attnres_kernels.operators.read import GENERATED_READ, GENERATED_READ_BACKWARD
from attnres_kernels.operators.sources_backward import SOURCES_BACKWARD
from attnres_passes.schedule.group_reads import Group, ReadGroups, group_reads

from .work import BLOCK, EPS, Shape

SCHEDULES = ("direct", "two_phase")
ADD = 3
"""What an addition of its own moves, in units of ``[T, d]``."""


@dataclass(frozen=True)
class ArmTraffic:
    """In units of ``[T, d]``. backward: of a training step; its forward moves what ``forward`` says."""

    forward: float
    backward: float

    def parts(self, shape: Shape, training: bool) -> dict[str, int]:
        """Bytes of each part that is timed.

        Args:
            shape: of the work.
            training: whether there is a backward.
        """
        units = {"forward": self.forward}
        if training:
            units |= {"backward": self.backward, "step": self.forward + self.backward}
        return {name: round(number * shape.row_bytes) for name, number in units.items()}


def read_groups(shape: Shape, schedule: str) -> ReadGroups:
    """The groups that the pass ``schedule`` cuts this block into.

    Args:
        shape: of the work.
        schedule: "direct", "two_phase" or "auto".
    """
    return group_reads([shape.sources] * shape.reads, schedule, tiling.most_in_place(shape.width))


def traffic_of_kernels(shape: Shape, schedule: str, makes_logits: bool = False) -> ArmTraffic:
    """What the generated kernels move.

    Args:
        shape: of the work.
        schedule: of the groups of reads.
        makes_logits: of all completed blocks, which a model has from before.
    """
    groups = read_groups(shape, schedule).groups
    forward = sum(_forward(shape, group) for group in groups)
    forward += shape.sources * makes_logits * units(GENERATED_LOGITS)
    backward = sum(_of_reads(shape, group) + _of_sources(shape, group) for group in groups)
    if shape.level == BLOCK:
        forward += units(GENERATED_BLOCK)
        # The branch that is the second read's partial sum gets two gradients, which are added outside of the kernels.
        backward += ADD * (shape.reads > 2)
    return ArmTraffic(forward, backward)


def ideal_traffic(shape: Shape) -> ArmTraffic:
    """What the other arms are charged with."""
    if shape.level != BLOCK:
        sources = shape.sources + 1
        return ArmTraffic(sources + 1, 2 * sources + 1)
    found = []
    for schedule in SCHEDULES:
        groups = read_groups(shape, schedule).groups
        forward = sum(_forward(shape, group) - _condensed(shape, group) for group in groups) + units(GENERATED_BLOCK)
        of_reads = sum(_of_reads(shape, group) - _condensed(shape, group) for group in groups)
        # Blocks and the gradients of their reads once, and the gradients of the blocks.
        found.append(ArmTraffic(forward, of_reads + 2 * shape.sources + shape.reads))
    return ArmTraffic(min(x.forward for x in found), min(x.backward for x in found))


def units(definition: OperatorDefinition[Any], **given: Any) -> int:
    """What a call of an operator moves, in units of ``[T, d]``.

    Args:
        definition: of the operator.
        given: its arguments by name, as far as they count.
    """
    return definition.traffic(definition.named(given)).total


def row_of(shape: Shape) -> Any:
    """Stands for any tensor ``[T, d]`` of the work."""
    return Shaped((shape.tokens, shape.width))


def neighbours_of(shape: Shape, number: int) -> Neighbours:
    """What is fused with a read of the work.

    Args:
        shape: of the work.
        number: of the read.
    """
    if shape.level != BLOCK:
        return ALONE
    row = row_of(shape)
    return Neighbours(row if number > 1 else None, "rms", EPS, row, returns_value=False)


def partial_of(shape: Shape, number: int) -> Any:
    """The open partial sum that a read of the work has, or None.

    Args:
        shape: of the work.
        number: of the read.
    """
    return row_of(shape) if number > 0 or shape.level != BLOCK else None


def gradients_of(shape: Shape, number: int) -> OutputGradients:
    """Which outputs of a read of the work have a gradient.

    Args:
        shape: of the work.
        number: of the read.
    """
    row = row_of(shape)
    if shape.level != BLOCK:
        return OutputGradients(value_grad=row)
    return OutputGradients(None, row, row if number > 1 else None)


def _reads(shape: Shape, group: Group) -> list[dict[str, Any]]:
    """The arguments that count of the reads of a group, forward and backward."""
    row = row_of(shape)
    inter, held = (row, ()) if group.shared else (None, [row] * shape.sources)
    return [
        {
            "inter": inter,
            "sources": held,
            "partial": partial_of(shape, number),
            "neighbours": neighbours_of(shape, number),
            "grads": gradients_of(shape, number),
            "adds": number > 1,
        }
        for number in range(group.first, group.first + len(group.completed))
    ]


def _phase_1(shape: Shape, group: Group) -> int:
    if not group.shared:
        return 0
    return units(GENERATED_PHASE_1, sources=[row_of(shape)] * shape.sources, count=len(group.completed))


def _forward(shape: Shape, group: Group) -> int:
    return _phase_1(shape, group) + sum(units(GENERATED_READ, **given) for given in _reads(shape, group))


def _of_reads(shape: Shape, group: Group) -> int:
    """The backward of each read, phase 1 made again included."""
    return _phase_1(shape, group) + sum(units(GENERATED_READ_BACKWARD, **given) for given in _reads(shape, group))


def _condensed(shape: Shape, group: Group) -> int:
    """What direct reads with more blocks than a kernel takes in place move more than each block once."""
    is_condensed = not group.shared and shape.sources > tiling.most_in_place(shape.width)
    return 2 * len(group.completed) if is_condensed else 0


def _of_sources(shape: Shape, group: Group) -> int:
    """Reads beyond the first group's find gradients to add to."""
    blocks, count = [row_of(shape)] * shape.sources, len(group.completed)
    carried = blocks if group.first + count < shape.reads else [None] * shape.sources
    return units(SOURCES_BACKWARD, read_grads=[row_of(shape)] * count, carried=carried, sources=blocks)
