"""Our forms of the work of ``attnres bench kernels``: generated kernels in each schedule, and plain torch.

A model's Inductor cannot fuse across the sublayer between two reads. Here nothing stands between them, so arms that are
torch code compiled in one graph add ``sublayer`` to each branch: a zero that is only known after the read before. It
costs them a launch of a number per read, and no pass over a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.autograd import generated_reads, keys, own_logits_read
from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import Neighbours, ReadForm, ReadParts
from attnres_passes.schedule.group_reads import ReadGroups
from attnres_passes.torch_private import torch_compat

from .own_logits_arms import most_sources, own_block, own_op, traffic_of_own_logits
from .traffic import SCHEDULES, ArmTraffic, grouping, ideal_traffic, traffic_of_kernels
from .work import BLOCK, EPS, OP, Inputs, Shape, block_by_reads, definition

KERNELS, TORCH, PEER = "kernels", "torch", "peer"
INDUCTOR, EAGER = "inductor", "eager"

Call = Callable[[Inputs, list[Tensor]], list[Tensor]]


def _nothing(_inputs: Inputs) -> list[Tensor]:
    return []


@dataclass(frozen=True)
class Arm:
    """One way to do the work.

    kind: KERNELS, TORCH or PEER; call: from the inputs and what ``prepare`` made to the outputs of ``definition``, and
    behind them the completed block's logits where the form makes them; prepare: what a model has from earlier blocks,
    not timed; traffic: what it is charged with; note: what it leaves out, or does otherwise; unsupported: why it cannot
    do this work; same_as: the arm that it is identical with here.
    """

    name: str
    kind: str
    traffic: ArmTraffic
    call: Call | None = None
    prepare: Callable[[Inputs], list[Tensor]] = _nothing
    note: str = ""
    unsupported: str = ""
    same_as: str = ""


def compiled(function: Callable[..., Any], inner: str) -> Callable[..., Any]:
    """``function`` under the inner compiler of a model, in one graph of fixed shapes, phase 1 marked as in a model."""
    if inner == EAGER:
        return function
    for of_kernels in _KERNEL_CALLS:
        # One node each, as in a lowered graph; without this, Dynamo would look into their autograd functions.
        torch.compiler.allow_in_graph(of_kernels)  # type: ignore[no-untyped-call]

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        for node in gm.graph.nodes:
            if node.target is generated_reads.phase_1:
                torch_compat.mark_for_recompute(node)
        return torch_compat.compile_inner(gm, inputs, inner, None)

    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


_KERNEL_CALLS: tuple[Callable[..., Any], ...] = (
    keys.key_matrix,
    generated_reads.source_logits,
    generated_reads.complete_block,
    generated_reads.link_sources,
    generated_reads.phase_1,
    generated_reads.read,
    own_logits_read.own_logits_read,
)


def kernel_arms(shape: Shape, inner: str, unsupported: str = "") -> list[Arm]:
    """The generated kernels, scheduled and called as the passes ``schedule`` and ``bind_kernels`` do."""
    arms: list[Arm] = []
    names: dict[ReadGroups, str] = {}
    for schedule in (*SCHEDULES, "auto"):
        name = f"{KERNELS}, {schedule}"
        first = names.setdefault(grouping(shape, schedule), name)
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
    groups = grouping(shape, schedule).groups

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
    groups, total, last = grouping(shape, schedule).groups, shape.total, shape.reads - 1
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


@torch.library.custom_op("attnres_bench::sublayer", mutates_args=())
def _sublayer(normed: Tensor) -> Tensor:
    """A zero that a compiler believes to depend on ``normed``."""
    return normed.new_zeros(())


@_sublayer.register_fake
def _(normed: Tensor) -> Tensor:
    return normed.new_empty(())


def _add_behind_sublayer(partial: Tensor, branch: Tensor, before: Tensor) -> Tensor:
    zero: Tensor = _sublayer(before.detach())
    return partial + (branch + zero)


def torch_arms(shape: Shape, inner: str) -> list[Arm]:
    """The definition, logits first and the paper's two phases, under the inner compiler; the definition eager too."""
    ideal = ideal_traffic(shape)
    arms = [Arm(f"naive, {EAGER}", TORCH, ideal, lambda inputs, _: definition(inputs))]
    if inner != EAGER:
        naive = compiled(lambda inputs, _: definition(inputs, _add_behind_sublayer), inner)
        arms.append(Arm(f"naive, {inner}", TORCH, ideal, naive))
    first = compiled(_logits_first_block(shape) if shape.level == BLOCK else _logits_first_op, inner)
    prepare = _torch_logits if shape.level == BLOCK else _nothing
    arms.append(Arm(f"logits first, {inner}", TORCH, ideal, first, prepare))
    phases = _phases_block(shape, inner) if shape.level == BLOCK else compiled(_phases_op, inner)
    note = "phases compiled one by one" if shape.level == BLOCK and inner != EAGER else ""
    arms.append(Arm(f"two phases, {inner}", TORCH, ideal, phases, note=note))
    return arms


def _torch_logits(inputs: Inputs) -> list[Tensor]:
    matrix = scheduled.key_matrix(inputs.queries, inputs.key_weights)
    return [scheduled.source_logits(source, matrix, 0, EPS) for source in inputs.sources]


def _logits_first_op(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
    matrix = scheduled.key_matrix(inputs.queries, inputs.key_weights)
    logits = [scheduled.source_logits(source, matrix, 0, EPS) for source in inputs.sources]
    return [scheduled.direct_read(inputs.sources, logits, inputs.branches[0], matrix, 0, 1.0, EPS)]


def _logits_first_block(shape: Shape) -> Call:
    def block(inputs: Inputs, logits: list[Tensor]) -> list[Tensor]:
        matrix = scheduled.key_matrix(inputs.queries, inputs.key_weights)

        def read(number: int, sources: list[Tensor]) -> Tensor:
            partial = sources[-1] if number > 0 else None
            value = scheduled.direct_read(inputs.sources, logits, partial, matrix, number, 1.0, EPS)
            return scheduled.normalise(value, "rms", EPS, inputs.norm_weights[number], None)

        *normed, completed = block_by_reads(inputs, read, _add_behind_sublayer)
        return [*normed, completed, scheduled.source_logits(completed, matrix, shape.reads, EPS)]

    return block


def _phase_1(sources: list[Tensor], queries: list[Tensor], key_weights: list[Tensor]) -> list[Tensor]:
    """Phase 1 of Algorithm 1, its outputs rounded to the dtype of the sources as the generated kernels do."""
    matrix, count = scheduled.key_matrix(queries, key_weights), len(queries)
    logits = [scheduled.source_logits(source, matrix, 0, EPS) for source in sources]
    made = scheduled.inter_block(sources, logits, 0, count, count)
    return [*(x.to(sources[0].dtype) for x in made[:count]), *made[count:]]


def _phase_2(inter: Tensor, log_sum: Tensor, partial: Tensor, query: Tensor, key_weight: Tensor) -> Tensor:
    matrix = scheduled.key_matrix([query], [key_weight])
    return scheduled.merge(partial, inter, log_sum, [], [], partial, matrix, 0, 1.0, EPS)


def _phases_op(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
    inter, log_sum = _phase_1(inputs.sources, inputs.queries, inputs.key_weights)
    return [_phase_2(inter, log_sum, inputs.branches[0], inputs.queries[0], inputs.key_weights[0])]


def _phases_block(shape: Shape, inner: str) -> Call:
    """Phase 1 and each phase 2 are graphs of their own: in one graph Inductor would undo them, recomputing phase 1's
    outputs where they are used.
    """

    def norm(value: Tensor, weight: Tensor) -> Tensor:
        return scheduled.normalise(value, "rms", EPS, weight, None)

    def merge(partial: Tensor, branch: Tensor | None, weight: Tensor, *of_read: Tensor) -> tuple[Tensor, Tensor]:
        partial = partial if branch is None else partial + branch
        inter, log_sum, query, key_weight = of_read
        return norm(_phase_2(inter, log_sum, partial, query, key_weight), weight), partial

    phase_1, first, later = (compiled(function, inner) for function in (_phase_1, norm, merge))

    def block(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
        count = shape.reads
        made = phase_1(inputs.sources, inputs.queries[:count], inputs.key_weights[:count])
        normed = [first(made[0], inputs.norm_weights[0])]
        partial = inputs.branches[0]
        for number in range(1, count):
            of_read = made[number], made[count + number], inputs.queries[number], inputs.key_weights[number]
            branch = inputs.branches[number - 1] if number > 1 else None
            value, summed = later(partial, branch, inputs.norm_weights[number], *of_read)
            partial = partial if branch is None else summed
            normed.append(value)
        return [*normed, partial + inputs.branches[-1]]

    return block
