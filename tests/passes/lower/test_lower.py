"""Every schedule computes what the definition does, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from torch import Tensor, nn
from torch.fx import Node

from attnres_compile.capture.capture import Captured
from attnres_kernels.autograd import keys, two_phase
from attnres_kernels.definition import naive, scheduled
from attnres_kernels.definition.naive import key_vector
from attnres_passes.analyses.streams import Analysis
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.levels import Level, check_level, is_depth_attention
from attnres_passes.lower.lower import lower
from attnres_passes.rewrite.rewrite import Rewritten, rewrite
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.schedule import schedule as make_schedule
from tests.passes.helpers import (
    WIDTH,
    Function,
    added_parameters,
    analysed,
    assert_same,
    fresh_inputs,
    run_with_gradients,
    sample,
)
from tests.passes.rewrite.random_models import RandomModel, Spec, specs
from tests.passes.rewrite.test_rewrite_values import stack, sublayer

SCHEDULES = ("naive", "direct", "two_phase", "auto")
PLAIN = ("sequential", "layer_norm", "nothing")


def scheduled_and_lowered(found: Captured, analysis: Analysis, schedule: str) -> tuple[Rewritten, Rewritten]:
    """A fresh rewrite of the graph, scheduled, and lowered to torch calls."""
    result = rewrite(found.gm, analysis)
    config = AttnResConfig(**{**analysis.plan.config.to_dict(), "schedule": schedule})
    plan = replace(analysis.plan, config=config)
    made = make_schedule(result.gm, plan, ProviderChoice.of(plan, Provider.TORCH)).gm
    check_level(made, Level.SCHEDULED, plan)
    gm = lower(made, plan, Provider.TORCH)
    check_level(gm, Level.LOWERED, plan)
    return Rewritten(made, result.parameters, result.streams), Rewritten(gm, result.parameters, result.streams)


def lowered(found: Captured, analysis: Analysis, schedule: str) -> Rewritten:
    return scheduled_and_lowered(found, analysis, schedule)[1]


def assert_schedules_equal_the_definition(
    model: Callable[..., Any] | nn.Module, *args: Tensor, tolerance: float = 1e-10, **options: Any
) -> None:
    found, analysis = analysed(model, *args, **options)
    definition = rewrite(found.gm, analysis)
    added = added_parameters(definition, analysis, seed=5)
    expected = run_with_gradients(definition.gm, fresh_inputs(found), added)
    assert all(gradient is not None for gradient in expected[2])
    for schedule in ("naive", "direct", "two_phase"):
        for level in scheduled_and_lowered(found, analysis, schedule):
            actual = run_with_gradients(level.gm, fresh_inputs(found), added)
            for values, wanted in zip(actual, expected, strict=True):
                assert_same(values, wanted, tolerance)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),  # small as they are; shrinking takes minutes
)
@given(specs())
@example(Spec(8, (PLAIN,) * 4, True, True, 3))
@example(Spec(6, (("parallel_two_norms", "hand_written", "swap"), PLAIN), False, False, 3))
@example(Spec(6, (("sequential", "rms_norm", "dropout"),) * 3, True, False, 2))
def test_schedules_equal_the_definition(spec: Spec) -> None:
    model = RandomModel(spec)
    for scale in ("mean", "sum"):
        assert_schedules_equal_the_definition(
            model,
            model.example(),
            tolerance=spec.tolerance,
            block_size=spec.block_size,
            scale=scale,
            eps=1e-5,
        )


def carried(between: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return stack(lambda self, k, x: between(x + sublayer(self, k, x)))


CARRIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "permutation": lambda x: x.transpose(0, 1),
    "dropout": lambda x: nn.functional.dropout(x, 0.2),
    "cast": lambda x: x.to(torch.float32).to(torch.float64),
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", CARRIERS)
def test_segments_begin_anew_after_the_stream_is_carried(name: str, size: int) -> None:
    tolerance = 1e-5 if name == "cast" else 1e-10
    assert_schedules_equal_the_definition(carried(CARRIERS[name]), tolerance=tolerance, block_size=size)


def calls(result: Rewritten, function: Callable[..., Any]) -> list[Node]:
    return [node for node in result.gm.graph.nodes if node.target is function]


@pytest.mark.parametrize("schedule", ["direct", "two_phase"])
def test_one_key_matrix_per_segment(schedule: str) -> None:
    module = scheduled if schedule == "direct" else keys
    found, analysis = analysed(stack(lambda self, k, x: x + sublayer(self, k, x)), block_size=1)
    assert len(calls(lowered(found, analysis, schedule), module.key_matrix)) == 1
    found, analysis = analysed(carried(CARRIERS["permutation"]), block_size=1)
    assert len(reads_of(rewrite(found.gm, analysis))) == 3
    # The last state is read by the permutation after it, so it is in the layout of the one before.
    assert len(calls(lowered(found, analysis, schedule), module.key_matrix)) == 2


def reads_of(result: Rewritten) -> list[Node]:
    return [node for node in result.gm.graph.nodes if is_depth_attention(node)]


def test_reshaped_stream_is_one_segment() -> None:
    found, analysis = analysed(carried(lambda x: x.reshape(-1, WIDTH).view(2, 3, WIDTH)), block_size=1)
    assert len(calls(lowered(found, analysis, "two_phase"), keys.key_matrix)) == 1


def six_writes(**options: Any) -> tuple[Captured, Analysis]:
    model = RandomModel(Spec(8, (PLAIN,) * 3, True, False, 2))
    return analysed(model, model.example(), **options)


def test_two_phase_works_once_per_block_and_once_per_read() -> None:
    found, analysis = six_writes(block_size=2)
    result = lowered(found, analysis, "two_phase")
    (stream,) = analysis.plan.streams
    groups = {
        len(read.args[0]) - bool(stream.reads[annotation_of(read).read.index].state % 2)
        for read in reads_of(rewrite(found.gm, analysis))
    }
    assert len(calls(result, two_phase.inter_block)) == len(groups)
    opened = [read for read in stream.parametrized_reads if read.state % 2]
    closed = [read for read in stream.parametrized_reads if not read.state % 2]
    assert len(calls(result, two_phase.merge)) == len(opened) == 3
    assert len(calls(result, two_phase.close)) == len(closed) == 3


@pytest.mark.parametrize("schedule", ["direct", "two_phase"])
def test_logits_of_a_completed_block_are_computed_once(schedule: str) -> None:
    module = scheduled if schedule == "direct" else two_phase
    found, analysis = six_writes(block_size=2)
    logits = calls(lowered(found, analysis, schedule), module.source_logits)
    assert len(logits) == 4, "the root and three blocks"


def test_naive_and_direct_make_one_call_per_read() -> None:
    found, analysis = six_writes(block_size=2)
    assert len(calls(lowered(found, analysis, "naive"), naive.naive_read)) == 6
    assert len(calls(lowered(found, analysis, "direct"), scheduled.direct_read)) == 6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reads_and_keys_are_gone_and_the_graph_is_sound(schedule: str) -> None:
    found, analysis = six_writes(block_size=2)
    result = lowered(found, analysis, schedule)
    nodes = list(result.gm.graph.nodes)
    assert not [node for node in nodes if is_depth_attention(node) or node.target is key_vector]
    assert {annotation.kind for node in nodes if (annotation := annotation_of(node))} >= {"parameter", "read", "write"}
    assert "key" not in {annotation.kind for node in nodes if (annotation := annotation_of(node))}
    assert all(node.users for node in nodes if node.op == "placeholder" and annotation_of(node))
    result.gm.graph.lint()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_read_keeps_its_annotation_its_source_and_its_value(schedule: str) -> None:
    found, analysis = six_writes(block_size=2)
    before = {annotation_of(node): node for node in reads_of(rewrite(found.gm, analysis))}
    after = {
        annotation: node
        for node in lowered(found, analysis, schedule).gm.graph.nodes
        if (annotation := annotation_of(node)) is not None and annotation.kind == "read"
    }
    after = {replace(annotation, group=None): node for annotation, node in after.items()}
    assert list(after) == list(before)
    for annotation, node in after.items():
        for name in ("stack_trace", "nn_module_stack", "example_value"):
            old, new = before[annotation].meta.get(name), node.meta.get(name)
            assert new is old or new == old


@pytest.mark.parametrize("schedule", ["direct", "two_phase"])
def test_nodes_of_a_schedule_are_annotated(schedule: str) -> None:
    found, analysis = six_writes(block_size=2)
    result = lowered(found, analysis, schedule)
    made = [node for node in result.gm.graph.nodes if "attnres_kernels" in getattr(node.target, "__module__", "")]
    annotations = [annotation_of(node) for node in made]
    assert all(annotation is not None and annotation.stream == 0 for annotation in annotations)
    assert {annotation.kind for annotation in annotations if annotation} == {"schedule", "read"}


def test_auto_is_two_phase_where_kernels_are_not_used() -> None:
    found, analysis = six_writes(block_size=2)
    assert calls(lowered(found, analysis, "auto"), two_phase.merge)
    assert not calls(lowered(found, analysis, "auto"), scheduled.direct_read)


def test_full_attention_residuals_are_grouped() -> None:
    """With a block per write, reads of a group share phase 1 and take later writes in place."""
    found, analysis = analysed(stack(lambda self, k, x: x + sublayer(self, k, x)), block_size=1)
    result = lowered(found, analysis, "two_phase")
    assert len(calls(result, two_phase.inter_block)) < len(analysis.plan.streams[0].parametrized_reads)
    assert calls(result, scheduled.merge), "a read with a block in place"
    assert_schedules_equal_the_definition(stack(lambda self, k, x: x + sublayer(self, k, x)), block_size=1)


def test_streams_are_scheduled_apart() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x.sinh(), y.sinh()
        for k in range(3):
            x = x + sublayer(self, k, x)
            y = y + sublayer(self, k, y) * self.norm[0](x)
        return self.norm[-1](x), self.norm[-1](y)

    arguments = (sample(), sample(seed=2))
    found, analysis = analysed(model, *arguments, block_size=2)
    assert len(calls(lowered(found, analysis, "two_phase"), keys.key_matrix)) == 2
    assert_schedules_equal_the_definition(model, *arguments, block_size=2)


def test_stream_with_a_single_read_of_its_root_has_nothing_to_lower() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        y = self.norm[0](x)
        x = x + self.linear[0](y)
        x = x + self.linear[1](y)
        return y + 0 * x.detach().sum()

    found, analysis = analysed(model, block_size=1)
    if analysis.plan.streams:
        lowered(found, analysis, "two_phase")


def test_the_definition_runs_without_data() -> None:
    """Reports count models on the meta device, for which torch has no autocast that could be off."""
    sources = [torch.empty(2, 3, 4, device="meta") for _ in range(2)]
    parameters = [torch.empty(4, device="meta") for _ in range(2)]
    read = naive.naive_read(sources, *parameters, 1e-6, "mean")
    assert read.is_meta
    assert read.shape == (2, 3, 4)
