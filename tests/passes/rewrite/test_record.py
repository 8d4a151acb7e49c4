"""The pass that makes a graph record: where its nodes stand, what they read, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.levels import Level, check_level
from attnres_passes.ir.read_id import ReadId, WriteId
from attnres_passes.pipeline import lower_rewritten
from attnres_passes.rewrite.record import Entry, record
from tests.passes.helpers import added_parameters, assert_same, fresh_inputs, rewritten, run, run_with_gradients


def model(m: torch.nn.Module, x: Tensor) -> Tensor:
    for k in range(3):
        branch = m.linear[k](m.norm[k](x))
        branch.mul_(2)
        x = x + branch
    return m.norm[3](x)


def test_nodes_stand_behind_what_they_are_about() -> None:
    """The last write is alone in its block; each branch is changed in place before it is written."""
    _, analysis, result = rewritten(model, block_size=2)
    found = record(result, with_gradients=True)
    check_level(found.result.gm, Level.REWRITTEN, analysis.plan)
    targets = [
        (str(node.target).removeprefix("attnres.").removesuffix(".default"), annotation.sublayer)
        for node in found.result.gm.graph.nodes
        if (annotation := annotation_of(node)) is not None and annotation.kind == "statistic"
    ]
    assert targets[:-1] == [
        ("write_statistics", 1),
        ("read_statistics", 1),
        ("write_statistics", 2),
        ("read_statistics", 2),
        ("write_statistics", 3),
        ("read_statistics", 3),
    ]
    assert found.entries == (
        Entry(WriteId(0, 0), 0, 3, 0),
        Entry(ReadId(0, 1), 3, 5),
        Entry(WriteId(0, 1), 8, 3, 1),
        Entry(ReadId(0, 2), 11, 5),
        Entry(WriteId(0, 2), 16, 3, 2),
        Entry(ReadId(0, 3), 19, 6),
    )
    assert found.num_probes == 3
    assert record(result, with_gradients=False).num_probes == 0


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("schedule", ["naive", "direct", "two_phase"])
def test_all_levels_give_the_same_statistics(schedule: str, with_gradients: bool) -> None:
    captured, analysis, result = rewritten(model, block_size=2, schedule=schedule)
    found = record(result, with_gradients)
    lowered = lower_rewritten(found.result.gm, analysis.plan).lowered
    probes = [torch.zeros(found.num_probes)] if with_gradients else []
    inputs = [*captured.inputs, *probes, *added_parameters(result, analysis, seed=1)]
    *outputs, statistics = run(found.result.gm, inputs)
    *of_lowered, lowered_statistics = run(lowered, inputs)
    assert_same([lowered_statistics, *of_lowered], [statistics, *outputs], 1e-12)
    assert statistics.shape == (25,)
    torch.testing.assert_close(statistics[3:5].sum(), statistics[7])


def test_outputs_and_gradients_are_those_of_the_graph_without() -> None:
    captured, analysis, result = rewritten(model, block_size=2)
    added = added_parameters(result, analysis, seed=1)
    found = record(result, with_gradients=True)
    inputs = fresh_inputs(captured)
    expected = run_with_gradients(result.gm, inputs, added)
    probes = torch.zeros(found.num_probes, requires_grad=True)
    outputs, of_inputs, of_added = run_with_gradients(found.result.gm, [*inputs, probes], added)
    assert not outputs[-1].requires_grad
    assert (of_inputs[-1] > 0).all()
    for one, other in zip((outputs[:-1], of_inputs[:-1], of_added), expected, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
