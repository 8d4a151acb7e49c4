"""Rules of the levels: for each one a graph that breaks it, and what is said."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from attnres_kernels.definition import scheduled
from attnres_kernels.definition.naive import key_vector
from attnres_kernels.errors import AttnResError
from attnres_passes.ir.annotations import KEY, Annotation, annotate, annotation_of
from attnres_passes.ir.levels import (
    RULES,
    SCHEDULED_READS,
    Level,
    LevelError,
    check_level,
    is_depth_attention,
    is_ours,
)
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId
from attnres_passes.lower.lower import lower
from attnres_passes.rewrite.rewrite import rewrite
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.schedule import schedule
from tests.passes.helpers import analysed
from tests.passes.rewrite.test_rewrite import tiny

Breaker = Callable[[GraphModule, Plan], None]


def graph_of(level: Level) -> tuple[GraphModule, Plan]:
    found, analysis = analysed(tiny, block_size=2)
    if level is Level.CAPTURED:
        return found.gm, analysis.plan
    gm = rewrite(found.gm, analysis).gm
    if level in (Level.SCHEDULED, Level.LOWERED):
        gm = schedule(gm, analysis.plan, ProviderChoice.of(analysis.plan, Provider.TORCH)).gm
    if level is Level.LOWERED:
        gm = lower(gm, analysis.plan, Provider.TORCH)
    return gm, analysis.plan


def first(gm: GraphModule, wanted: Callable[[Node], bool]) -> Node:
    return next(node for node in gm.graph.nodes if wanted(node))


def own_node_in_capture(gm: GraphModule, plan: Plan) -> None:
    x = first(gm, lambda node: node.op == "placeholder")
    with gm.graph.inserting_before(first(gm, lambda node: node.op == "output")):
        gm.graph.call_function(key_vector, (x, x))


def annotation_in_capture(gm: GraphModule, plan: Plan) -> None:
    annotate(first(gm, lambda node: node.op == "call_function"), Annotation("write", 0))


def lost_metadata(gm: GraphModule, plan: Plan) -> None:
    del first(gm, is_ours).meta[KEY]


def lost_parameter(gm: GraphModule, plan: Plan) -> None:
    parameter = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    del parameter.meta[KEY]


def placeholder_behind_the_parameters(gm: GraphModule, plan: Plan) -> None:
    with gm.graph.inserting_before(first(gm, lambda node: node.op != "placeholder")):
        gm.graph.placeholder("late")


def missing_read(gm: GraphModule, plan: Plan) -> None:
    read = first(gm, is_depth_attention)
    read.replace_all_uses_with(read.args[0][0])
    gm.graph.erase_node(read)


def doubled_read(gm: GraphModule, plan: Plan) -> None:
    one, other = [node for node in gm.graph.nodes if is_depth_attention(node)][:2]
    annotate(other, annotation_of(one))


def wrong_number_of_sources(gm: GraphModule, plan: Plan) -> None:
    read = first(gm, is_depth_attention)
    read.args = (read.args[0][:1], *read.args[1:])


def raw_key(gm: GraphModule, plan: Plan) -> None:
    read = first(gm, is_depth_attention)
    read.args = (read.args[0], read.args[1].args[0], *read.args[2:])


def read_left(gm: GraphModule, plan: Plan) -> None:
    source, key = [node for node in gm.graph.nodes if node.op == "placeholder"][:2]
    with gm.graph.inserting_before(first(gm, lambda node: node.op == "output")):
        node = gm.graph.call_function(torch.ops.attnres.depth_attention.default, ([source], key, 1e-6, "mean"))
    annotate(node, Annotation("read", 0, read=ReadId(0, 0)))


def missing_scheduled_read(gm: GraphModule, plan: Plan) -> None:
    read = first(gm, lambda node: node.target in SCHEDULED_READS)
    read.replace_all_uses_with(read.args[0])
    gm.graph.erase_node(read)


def read_outside_its_group(gm: GraphModule, plan: Plan) -> None:
    read = first(gm, lambda node: node.target is scheduled.merge)
    source = read.args[0]
    read.args = (source, source, source, *read.args[3:])


def phase_1_left(gm: GraphModule, plan: Plan) -> None:
    source = first(gm, lambda node: node.op == "placeholder")
    with gm.graph.inserting_before(first(gm, lambda node: node.op == "output")):
        node = gm.graph.call_function(scheduled.inter_block, ([source], [source], 0, 1, 1))
    annotate(node, Annotation("schedule", 0))


def statistic_in_the_model(gm: GraphModule, plan: Plan) -> None:
    given = first(gm, lambda node: node.op == "placeholder")
    with gm.graph.inserting_before(first(gm, lambda node: node.op == "output")):
        statistic = annotate(gm.graph.call_function(torch.sum, (given,)), Annotation("statistic", 0))
        gm.graph.call_function(torch.neg, (statistic,))


BREAKERS: list[tuple[Level, str, Breaker, str]] = [
    (Level.CAPTURED, "it is what Dynamo captured", own_node_in_capture, "a node of the rewrite is in it"),
    (Level.CAPTURED, "it is what Dynamo captured", annotation_in_capture, "a node of the rewrite is in it"),
    *[
        (
            level,
            "the parameters of the reads are its last placeholders",
            lost_parameter,
            "5 of 21 placeholders are ours",
        )
        for level in (Level.REWRITTEN, Level.SCHEDULED, Level.LOWERED)
    ],
    *[
        (
            level,
            "the parameters of the reads are its last placeholders",
            placeholder_behind_the_parameters,
            "6 of 22 placeholders are ours where the plan has 6",
        )
        for level in (Level.REWRITTEN, Level.SCHEDULED, Level.LOWERED)
    ],
    *[
        (level, "every node of ours carries metadata", lost_metadata, "this one has no metadata")
        for level in (Level.REWRITTEN, Level.SCHEDULED, Level.LOWERED)
    ],
    (
        Level.REWRITTEN,
        "it has one depth attention per read of the plan",
        missing_read,
        "in one of the two only",
    ),
    (
        Level.REWRITTEN,
        "it has one depth attention per read of the plan",
        doubled_read,
        "two reads have the same place in the plan",
    ),
    (
        Level.REWRITTEN,
        "it has one depth attention per read of the plan",
        wrong_number_of_sources,
        "1 sources where the plan has 2",
    ),
    (
        Level.REWRITTEN,
        "every depth attention reads a key vector",
        raw_key,
        "its key vector is something else",
    ),
    (
        Level.SCHEDULED,
        "it has one scheduled read per read of the plan",
        missing_scheduled_read,
        "2 reads where the plan has 3",
    ),
    (
        Level.SCHEDULED,
        "every read of a group merges with its phase 1",
        read_outside_its_group,
        "it is made for 1 reads and 0 merge with it",
    ),
    *(
        (
            level,
            "what is recorded of it goes to the output and nowhere else",
            statistic_in_the_model,
            "this one reads sum_1",
        )
        for level in (Level.REWRITTEN, Level.SCHEDULED, Level.LOWERED)
    ),
    (Level.LOWERED, "no depth attention is left to lower", read_left, "this one is left"),
    (
        Level.LOWERED,
        "every phase 1 and every fused read is bound to an implementation",
        phase_1_left,
        "this one is left",
    ),
]


@pytest.mark.parametrize("level", list(Level))
def test_sound_graph_passes(level: Level) -> None:
    gm, plan = graph_of(level)
    check_level(gm, level, plan)


def name_of(value: object) -> str:
    return value.value if isinstance(value, Level) else getattr(value, "__name__", "")


@pytest.mark.parametrize(("level", "rule", "breaks", "wrong"), BREAKERS, ids=name_of)
def test_broken_rule_is_named(level: Level, rule: str, breaks: Breaker, wrong: str) -> None:
    gm, plan = graph_of(level)
    breaks(gm, plan)
    with pytest.raises(LevelError) as caught:
        check_level(gm, level, plan)
    message = caught.value.message
    assert message.startswith(f"{level.value} graph: {rule}; ")
    assert wrong in message
    assert message.endswith("Report this with the files that ATTNRES_DUMP=dir writes.")


def test_every_rule_of_every_level_has_a_graph_that_breaks_it() -> None:
    broken = {(level, rule) for level, rule, _, _ in BREAKERS}
    assert broken == {(level, rule.says) for level, rules in RULES.items() for rule in rules}
    assert set(RULES) == set(Level)


def test_error_shows_the_node_and_its_line() -> None:
    gm, plan = graph_of(Level.REWRITTEN)
    wrong_number_of_sources(gm, plan)
    with pytest.raises(LevelError, match=r"at %read_0_1 .*test_rewrite\.py:\d+\)") as caught:
        check_level(gm, Level.REWRITTEN, plan)
    assert re.search(r"call_function\[target=torch\.ops\.attnres\.depth_attention", str(caught.value))


def test_level_error_is_one_of_ours() -> None:
    assert issubclass(LevelError, AttnResError)


def test_graph_that_is_no_graph_fails_its_lint() -> None:
    gm, plan = graph_of(Level.CAPTURED)
    stranger = Graph().placeholder("stranger")
    last = first(gm, lambda node: node.op == "output")
    last.args = ((stranger,),)
    with pytest.raises(RuntimeError):
        check_level(gm, Level.CAPTURED, plan)


def test_declined_streams_ask_for_nothing() -> None:
    gm, plan = graph_of(Level.CAPTURED)
    nothing = dataclasses.replace(plan, streams=())
    for level in (Level.REWRITTEN, Level.SCHEDULED, Level.LOWERED):
        check_level(gm, level, nothing)
