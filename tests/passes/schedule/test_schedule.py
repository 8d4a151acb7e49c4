"""What ``auto`` chooses on torch calls: direct reads of few tokens on a CPU, without gradients; else phases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnres_kernels.definition import scheduled
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.rewrite.rewrite import rewrite
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.schedule import schedule
from attnres_passes.schedule.scheduled_nodes import calls
from tests.passes.helpers import WIDTH, Function, captured, sample, trace_aten

FEW, MANY = 3, 4096


def deep(self: Function, x: Tensor) -> Tensor:
    for linear, norm in zip(self.linear, self.norm, strict=False):
        x = x + linear(norm(x))
    return self.norm[-1](x)


def phases(tokens: int, asked: str = "auto", differentiates: bool = False, device: str = "cpu") -> tuple[int, str]:
    """Phases 1 of a scheduled graph, and its table."""
    found = captured(deep, sample(1, tokens, WIDTH), layers=24)
    analysis = find_streams(trace_aten(found.gm), AttnResConfig(num_blocks=8))
    plan = replace(analysis.plan, config=replace(analysis.plan.config, schedule=asked))  # type: ignore[arg-type]
    gm = rewrite(found.gm, analysis).gm
    for node in gm.graph.nodes:
        if device != "cpu" and isinstance(node.meta.get("example_value"), Tensor):
            node.meta["example_value"] = torch.empty_like(node.meta["example_value"], device=device)
    made = schedule(gm, plan, ProviderChoice.of(plan, Provider.TORCH, differentiates=differentiates))
    return len(calls(made.gm, scheduled.inter_block)), str(made)


def test_few_tokens_without_gradients_are_read_directly() -> None:
    count, table = phases(FEW)
    assert count == 0
    assert f"on a CPU, nothing differentiated, {FEW} tokens: direct costs" in table


def test_many_tokens_are_read_in_phases() -> None:
    count, table = phases(MANY)
    assert count == 9
    assert "on a CPU: two_phase, as for all over 256 tokens" in table


def test_gradients_and_other_devices_keep_phases() -> None:
    for found in (phases(FEW, differentiates=True), phases(FEW, device="meta")):
        assert found[0] == 9
        assert "on a CPU" not in found[1]


@pytest.mark.parametrize(("asked", "count"), [("direct", 0), ("two_phase", 9)])
def test_what_is_asked_for_is_done(asked: str, count: int) -> None:
    assert {phases(tokens, asked)[0] for tokens in (FEW, MANY)} == {count}
