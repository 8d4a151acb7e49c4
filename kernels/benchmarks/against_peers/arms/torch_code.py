"""Arms that are torch code: the definition, logits first, and the paper's two phases.

A model's Inductor cannot fuse across the sublayer between two reads. Here nothing stands between them, so arms that are
torch code compiled in one graph add ``sublayer`` to each branch: a zero that is only known after the read before. It
costs them a launch of a number per read, and no pass over a tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnres_kernels.definition import scheduled

from ..traffic import ideal_traffic
from ..work import BLOCK, EPS, Inputs, Shape, block_by_reads, definition
from .arm import EAGER, TORCH, Arm, Call, compiled, nothing


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
    """The definition, logits first and the paper's two phases, under the inner compiler; the definition eager too.

    Args:
        shape: of the work.
        inner: the compiler.
    """
    ideal = ideal_traffic(shape)
    arms = [Arm(f"naive, {EAGER}", TORCH, ideal, lambda inputs, _: definition(inputs))]
    if inner != EAGER:
        naive = compiled(lambda inputs, _: definition(inputs, _add_behind_sublayer), inner)
        arms.append(Arm(f"naive, {inner}", TORCH, ideal, naive))
    first = compiled(_logits_first_block(shape) if shape.level == BLOCK else _logits_first_op, inner)
    prepare = _torch_logits if shape.level == BLOCK else nothing
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
