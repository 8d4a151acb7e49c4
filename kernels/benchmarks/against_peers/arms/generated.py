"""Arms on generated kernels, in each schedule, called as the passes ``schedule`` and ``bind_kernels`` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from attnres_kernels.autograd import generated_reads, keys
from attnres_kernels.definition.read_parts import Neighbours, ReadForm, ReadParts
from attnres_passes.schedule.group_reads import ReadGroups

from ..traffic import SCHEDULES, read_groups, traffic_of_kernels
from ..work import BLOCK, EPS, OP, Inputs, Shape
from .arm import KERNELS, Arm, Call, compiled
from .own_logits import most_sources, own_block, own_op, traffic_of_own_logits


def kernel_arms(shape: Shape, inner: str, unsupported: str = "") -> list[Arm]:
    """An arm per schedule, one with the logits known at op level, and one whose reads make their own logits.

    Args:
        shape: of the work.
        inner: the compiler around the kernels.
        unsupported: why there are no kernels here; '' if there are.
    """
    arms: list[Arm] = []
    names: dict[ReadGroups, str] = {}
    for schedule in (*SCHEDULES, "auto"):
        name = f"{KERNELS}, {schedule}"
        first = names.setdefault(read_groups(shape, schedule), name)
        arm = Arm(name, KERNELS, traffic_of_kernels(shape, schedule, shape.level == OP), unsupported=unsupported)
        if not unsupported and first != name:
            arm = replace(arm, same_as=first)
        elif not unsupported:
            build = _kernel_block if shape.level == BLOCK else _kernel_op
            arm = replace(arm, call=compiled(build(shape, schedule), inner))
        arms.append(replace(arm, prepare=_kernel_logits) if shape.level == BLOCK else arm)
    if shape.level == OP:
        known = Arm("kernels, logits known", KERNELS, traffic_of_kernels(shape, "auto"), unsupported=unsupported)
        if not unsupported:
            known = replace(known, call=compiled(_kernel_op(shape, "auto", True), inner), prepare=_kernel_logits)
        arms.append(replace(known, note="logits of completed blocks given, as in a model"))
    return [*arms, _own_logits(shape, inner, unsupported)]


def _own_logits(shape: Shape, inner: str, unsupported: str) -> Arm:
    """Reads that make their logits themselves."""
    arm = Arm("kernels, own logits", KERNELS, traffic_of_own_logits(shape))
    most = most_sources(shape)
    if shape.sources + 1 > most:
        unsupported = unsupported or f"makes its own logits of up to {most} sources of this width"
    if unsupported:
        return replace(arm, unsupported=unsupported)
    return replace(arm, call=compiled(own_block if shape.level == BLOCK else own_op, inner))


def _kernel_logits(inputs: Inputs) -> list[Tensor]:
    matrix, _, _ = keys.key_matrix(inputs.queries, inputs.key_weights, [])
    return [generated_reads.source_logits(source, matrix, 0, EPS) for source in inputs.sources]


def _kernel_op(shape: Shape, schedule: str, logits_known: bool = False) -> Call:
    groups = read_groups(shape, schedule).groups

    def read(inputs: Inputs, logits: list[Tensor]) -> list[Tensor]:
        matrix, of_ranges, rows = keys.key_matrix(inputs.queries, inputs.key_weights, [(0, 1)])
        if not logits_known:
            logits = [generated_reads.source_logits(source, matrix, 0, EPS) for source in inputs.sources]
        links, _ = generated_reads.link_sources(inputs.sources, logits, of_ranges[0], 0, 1, EPS)
        inter = generated_reads.phase_1(inputs.sources, logits, 0, 1, 1) if groups[0].shared else [None, None]
        held, their_logits = ([], []) if groups[0].shared else (inputs.sources, logits)
        parts = ReadParts(inter[0], inter[1], held, their_logits, inputs.branches[0], rows[0])
        return list(generated_reads.read([(links, 0)], parts, ReadForm(0, 1, 1.0, EPS), inputs.sources[0]))

    return read


def _kernel_block(shape: Shape, schedule: str) -> Call:
    groups, total, last = read_groups(shape, schedule).groups, shape.total, shape.reads - 1
    ranges = [(group.first, len(group.completed)) for group in groups]

    def block(inputs: Inputs, logits: list[Tensor]) -> list[Tensor]:
        matrix, of_ranges, rows = keys.key_matrix(inputs.queries, inputs.key_weights, ranges)
        handed, normed = inputs.sources, []
        partial: Tensor | None = None
        for group, of_range in zip(groups, of_ranges, strict=True):
            count = len(group.completed)
            inter: Sequence[Tensor | None] = [None] * (2 * count)
            held, their_logits = inputs.sources, logits
            if group.shared:
                inter = generated_reads.phase_1(inputs.sources, logits, group.first, count, total)
                held, their_logits = [], []
            links, handed = generated_reads.link_sources(handed, logits, of_range, group.first, total, EPS)
            for place in range(count):
                number = group.first + place
                branch = inputs.branches[number - 1] if number > 1 else None
                partial = inputs.branches[0] if number == 1 else partial
                key = None if partial is None else rows[number]
                parts = ReadParts(inter[place], inter[count + place], held, their_logits, partial, key)
                behind = Neighbours(branch, "rms", EPS, inputs.norm_weights[number], returns_value=False)
                form = ReadForm(number, total, 1.0, EPS)
                made = generated_reads.read([(links, place)], parts, form, inputs.sources[0], behind)
                normed.append(made[0])
                partial = partial if branch is None else made[1]
        assert partial is not None
        return [*normed, *generated_reads.complete_block(partial, inputs.branches[last], matrix, shape.reads, EPS)]

    return block
