"""The parts of schedules.md: the model of how_it_works.md, scheduled and lowered."""

from __future__ import annotations

import functools
import os

from example_model import example

import attnres_compile
from attnres_kernels.definition import cost
from attnres_passes.schedule.group_reads import Inference, group_reads
from parts import part
from parts.how_it_works import OPTIONS, explained
from parts.layout import excerpt, fenced, table


@functools.cache
def explained_on_kernels() -> attnres_compile.Explanation:
    """With the reads on generated kernels, as on a GPU; nothing is run."""
    os.environ["ATTNRES_KERNELS"] = "triton"
    try:
        model, args, kwargs = example()
        return attnres_compile.explain(model, args, kwargs, **OPTIONS)
    finally:
        del os.environ["ATTNRES_KERNELS"]


@part
def scheduled_second() -> str:
    return excerpt(explained().text("scheduled"), "logits_1", "layer_norm_2:")


@part
def costs() -> str:
    rows = [
        [
            n,
            *(f"{value:.2f}" for value in (cost.direct(n), *(cost.two_phase(n, s) for s in (2, 8)), cost.naive(n))),
        ]
        for n in (1, 2, 4, 8)
    ]
    return table(rows, ["completed blocks", "direct", "two-phase, 2 reads", "two-phase, 8 reads", "naive, unfused"])


@part
def schedule_table() -> str:
    return fenced(str(group_reads([1 + read // 3 for read in range(1, 25)], "auto", most_in_place=12)))


@part
def without_gradients() -> str:
    completed = [1 + read // 3 for read in range(1, 25)]
    rows = []
    for tokens in (1, 64, 1024, 8192, 65536):
        inference = Inference(cost.launch(tokens, 768, 2), most=31)
        groups = group_reads(completed, "auto", 12, inference).groups
        first = [group for group in groups if not group.own_logits]
        of_phase_1, of_logits = (
            sum(group.shared > 0 for group in first),
            max((x.completed[-1] for x in first), default=0),
        )
        reads = sum(len(group.completed) for group in groups if group.own_logits)
        moved = (sum(group.moved for group in groups) + of_logits * cost.logits_first()) / len(completed)
        rows.append([tokens, f"{inference.launch:.3g}", reads, of_phase_1 + of_logits, f"{moved:.2f}"])
    return table(
        rows,
        ["tokens", "a launch counts as", "reads with own logits", "launches beyond one per read", "moved per read"],
    )


@part
def fused_read() -> str:
    return excerpt(explained_on_kernels().text("scheduled"), "fused_direct_read(", "linear_2:")


@part
def fused_report() -> str:
    return fenced("\n".join(explained_on_kernels().schedule.splitlines()[-2:]))


@part
def lowered_second() -> str:
    return excerpt(explained().text("lowered"), "keys_of_group_1 = ", "layer_norm_2:")


@part
def lowered_kernels() -> str:
    return excerpt(explained_on_kernels().text("lowered"), "link_sources = ", "linear_2:")
