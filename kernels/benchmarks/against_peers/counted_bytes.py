"""Bytes that a form of the work moves through memory, counted by hand from what its kernels read and write.

The unit is one ``[T, d]``. Left out are what is smaller by a factor of the width: logits and statistics ``[T]``,
parameters ``[d]``, and sums over tokens with one row per program; a fraction of the copy bandwidth is thus rather
counted too low.

Forward, at block level: ``cost.group`` of the groups of reads, which charges every read with an add and a norm, less
two: the first read has no partial sum (3 less), the second's is the branch itself (2 less), and the add that completes
the block stands behind the last read (3 more). At op level ``cost.group`` less the branch and the new partial sum (2).

Backward of one read: it reads the gradient of its output, that of the new partial sum (if it adds one), the partial
sum, and its blocks in place or phase 1's output; it writes the gradient ``h`` of the weighted sum and that of the
partial sum. Before it, phase 1 is made again from the blocks. Behind it, the gradients of the blocks of a group of
reads: one pass over blocks and ``h``, and one more over the blocks for the gradients of the keys where registers are
short, in launches as ``generated.cutting`` cuts them.

The *ideal* form is what all other arms are charged with, so that their fractions compare times and nothing else: the
cheaper schedule, every tensor read once per phase, logits known as they are in a model. For one read it is one pass
each way, which a kernel that makes the logits itself does, too: sources and output, and backward sources, their
gradients and that of the output.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnres_kernels.launch import tiling
from attnres_kernels.launch.cutting import moved_by_launches
from attnres_passes.schedule.group_reads import Group, ReadGroups, group_reads

from .work import BLOCK, Shape

SCHEDULES = ("direct", "two_phase")


@dataclass(frozen=True)
class Moved:
    """Bytes in units of one ``[T, d]``."""

    forward: float
    backward: float
    """Of a training step, whose forward moves ``forward``."""

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


def grouping(shape: Shape, schedule: str) -> ReadGroups:
    """The groups that the pass ``schedule`` cuts this block into.

    Args:
        shape: of the work.
        schedule: its name.
    """
    return group_reads([shape.sources] * shape.reads, schedule, tiling.most_in_place(shape.width))


def moved_by_kernels(shape: Shape, schedule: str, makes_logits: bool = False) -> Moved:
    """What the generated kernels move.

    Args:
        shape: of the work.
        schedule: its name.
        makes_logits: of all completed blocks, which a model has from before.
    """
    groups = grouping(shape, schedule).groups
    forward = sum(group.moved for group in groups) - 2 + shape.sources * makes_logits
    forward += sum(_condensed(shape, group) for group in groups)
    backward = sum(_of_reads(shape, group) + _of_sources(shape, group) for group in groups)
    # The branch that is the second read's partial sum gets two gradients, which are added outside of the kernels.
    backward += 3 if shape.level == BLOCK and shape.reads > 2 else 0
    return Moved(forward, backward)


def moved_ideally(shape: Shape) -> Moved:
    """What the other arms are charged with."""
    if shape.level != BLOCK:
        sources = shape.sources + 1
        return Moved(sources + 1, 2 * sources + 1)
    found = []
    for schedule in SCHEDULES:
        groups = grouping(shape, schedule).groups
        forward = sum(group.moved for group in groups) - 2
        of_reads = sum(_of_reads(shape, group) - _condensed(shape, group) for group in groups)
        # Blocks and the gradients of their reads once, and the gradients of the blocks.
        found.append(Moved(forward, of_reads + 2 * shape.sources + shape.reads))
    return Moved(min(x.forward for x in found), min(x.backward for x in found))


def _condensed(shape: Shape, group: Group) -> int:
    """Direct reads with more blocks than a kernel takes in place sum them up by a phase 1 of their own."""
    is_condensed = not group.shared and shape.sources > tiling.most_in_place(shape.width)
    return 2 * len(group.completed) if is_condensed else 0


def _of_reads(shape: Shape, group: Group) -> int:
    """The backward of each read, phase 1 made again included."""
    count = len(group.completed)
    of_blocks = shape.sources + 2 * count if group.shared else shape.sources * count + _condensed(shape, group)
    numbers = range(group.first, group.first + count)
    if shape.level != BLOCK:
        return of_blocks + 4 * count  # gradient of the output, partial sum; h, gradient of the partial sum
    with_partial = sum(number > 0 for number in numbers)
    adding = sum(number > 1 for number in numbers)
    return of_blocks + 2 * count + 2 * with_partial + adding


def _of_sources(shape: Shape, group: Group) -> int:
    """The launches of ``launch_sources_backward``; reads beyond the first launch's find gradients to add to."""
    count = len(group.completed)
    return moved_by_launches(shape.sources, count, shape.width, carried=group.first + count < shape.reads)
