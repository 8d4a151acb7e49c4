"""Every operator has one definition, and whatever is known of an operator elsewhere is read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule

from attnres_compile.inspection.facts.kernels import kernels_of
from attnres_compile.report.counting.execution import count
from attnres_kernels.autograd import generated_reads
from attnres_kernels.definition import scheduled
from attnres_kernels.generation.specs import Phase1Spec
from attnres_kernels.generation.traffic import Traffic
from attnres_kernels.operators.definition import DEFINITIONS, OperatorDefinition, Work, definition_of
from attnres_kernels.operators.phase_1 import GENERATED_PHASE_1
from attnres_passes.cost.traffic import traffic
from attnres_passes.ir.annotations import Annotation, annotate

OF_REPORTS = {"attnres::counted_attention", "attnres::counted_attention_backward"}
"""Operators that stand in for attention where FLOPs are counted."""

TOKENS, WIDTH, SOURCES, READS = 5, 8, 3, 2


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name for name in names if name.startswith("attnres::")} - OF_REPORTS


def test_every_operator_has_one_definition_and_its_schema() -> None:
    assert registered() == set(DEFINITIONS)
    for name, definition in DEFINITIONS.items():
        operator = getattr(torch.ops.attnres, name.removeprefix("attnres::"))
        assert definition_of(operator) is definition_of(operator.default) is definition
        arguments = operator.default._schema.arguments
        given = {argument.name: number for number, argument in enumerate(arguments)}
        bound = definition.bound(list(given.values()))
        assert bound == definition.named(given), name


def test_an_operator_is_not_defined_twice() -> None:
    with pytest.raises(AssertionError, match="defined twice"):
        OperatorDefinition(
            GENERATED_PHASE_1.name,
            GENERATED_PHASE_1.arguments,
            list[torch.Tensor],
            GENERATED_PHASE_1.run,
            GENERATED_PHASE_1.fake,
            make=lambda name: lambda function: SimpleNamespace(register_fake=lambda fake: fake),
        )


def graph_of(function: Callable[..., Any]) -> GraphModule:
    """A graph that calls phase 1 of some reads, at the level of ``function``."""
    graph = Graph()
    sources, logits = ([graph.placeholder(f"{name}_{i}") for i in range(SOURCES)] for name in ("source", "logits"))
    graph.output(annotate(graph.call_function(function, (sources, logits, 0, READS, READS)), Annotation("schedule", 0)))
    return GraphModule(torch.nn.Module(), graph)


def known() -> dict[str, Any]:
    """What is known elsewhere of a call of phase 1: FLOPs, launches, traffic, and its line of the inspection."""
    shapes = [(TOKENS, WIDTH)] * SOURCES + [(TOKENS, READS)] * SOURCES
    counted = count(graph_of(torch.ops.attnres.generated_phase_1), [torch.empty(x, device="meta") for x in shapes])
    plan = SimpleNamespace(streams=[SimpleNamespace(width=WIDTH, reads=[])])
    lowered = SimpleNamespace(
        lowered=graph_of(generated_reads.phase_1), choice=SimpleNamespace(provider=SimpleNamespace(value="triton"))
    )
    (line,) = kernels_of(lowered, (SimpleNamespace(name="x", width=WIDTH, dtype="float32"),))
    return {
        "flops": sum(counted.forward.values()),
        "launches": counted.launches[0],
        "traffic": traffic(graph_of(scheduled.inter_block), plan),
        "line": (line.sources, line.reads, line.fused),
    }


@pytest.fixture
def other() -> Iterator[None]:
    """Phase 1 has another definition for a while."""
    fields = {
        "kernels": lambda call: [Phase1Spec(7, 1), Phase1Spec(4, 1)],
        "flops": lambda call: 11,
        "work": lambda call: Work(13, 17, ["much"]),
    }
    before = {name: getattr(GENERATED_PHASE_1, name) for name in fields}
    for name, value in fields.items():
        object.__setattr__(GENERATED_PHASE_1, name, value)
    yield
    for name, value in before.items():
        object.__setattr__(GENERATED_PHASE_1, name, value)


def test_what_is_known_of_a_call() -> None:
    assert known() == {
        "flops": 2 * SOURCES * READS * TOKENS * WIDTH,
        "launches": 1,
        "traffic": (Traffic(SOURCES, READS),),
        "line": ((SOURCES, SOURCES), (READS, READS), ""),
    }


@pytest.mark.usefixtures("other")
def test_what_is_known_of_a_call_changes_with_its_definition() -> None:
    assert known() == {
        "flops": 11,
        "launches": 2,
        "traffic": (Traffic(11, 2),),
        "line": ((13, 13), (17, 17), "much"),
    }
