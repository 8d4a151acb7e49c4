"""What is fused with reads, what is not, and that nothing is computed before it can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from attnres_kernels.definition import scheduled
from attnres_passes.ir.levels import Level, check_level
from attnres_passes.rewrite.rewrite import rewrite
from attnres_passes.schedule.fuse import Fused, fuse
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.schedule import schedule
from tests.passes.helpers import (
    Function,
    added_parameters,
    analysed,
    assert_same,
    fresh_inputs,
    run_with_gradients,
)
from tests.passes.rewrite.test_rewrite_values import sublayer


def fused_model(model: Any, layers: int = 6, **options: Any) -> tuple[GraphModule, Fused]:
    """The fused graph in fp32, checked against the definition: outputs and every gradient."""

    def single(self: Function, x: Tensor) -> Any:
        return model(self.float(), x.float())

    found, analysis = analysed(single, layers=layers, **options)
    definition = rewrite(found.gm, analysis)
    made = schedule(definition.gm, analysis.plan, ProviderChoice.of(analysis.plan, Provider.TRITON))
    report = fuse(made.gm, analysis.plan)
    check_level(report.gm, Level.SCHEDULED, analysis.plan)
    added = [x.float() for x in added_parameters(definition, analysis, seed=3)]
    expected = run_with_gradients(definition.gm, fresh_inputs(found), added)
    actual = run_with_gradients(report.gm, fresh_inputs(found), added)
    for values, wanted in zip(actual, expected, strict=True):
        assert_same(values, wanted, 2e-5)
    return report.gm, report


def sequential(self: Function, x: Tensor) -> Tensor:
    for k in range(6):
        x = x + sublayer(self, k, x)
    return self.norm[-1](x)


def test_adds_norms_and_completed_blocks() -> None:
    gm, report = fused_model(sequential, block_size=3)
    # Six reads behind writes; of each block the second and third write are added, the third completes it.
    assert (report.norms, report.adds, report.blocks) == (6, 2, 2)
    assert not report.not_fused
    targets = [node.target for node in gm.graph.nodes]
    assert targets.count(torch.add) == 0
    assert targets.count(scheduled.complete_block) == 2


def test_a_value_that_is_returned_as_well_stays() -> None:
    def model(self: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        for k in range(6):
            x = x + sublayer(self, k, x)
        return self.norm[-1](x), x

    _, report = fused_model(model, block_size=3)
    assert report.norms >= 5


def test_two_norms_of_one_state_are_two_reads() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(0, 6, 2):
            x = x + self.linear[k](self.norm[k](x)) + self.linear[k + 1](self.norm[k + 1](x)).tanh()
        return self.norm[-1](x)

    _, report = fused_model(model, block_size=2)
    assert (report.norms, report.adds, report.blocks) == (5, 0, 3)


def test_a_norm_that_is_none_says_why() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(6):
            x = x + self.linear[k](x / (x.std(-1, keepdim=True) + 1e-3))
        return self.norm[-1](x)

    _, report = fused_model(model, block_size=3)
    assert report.norms == 1
    assert len(report.not_fused) == 5
    assert "norm not fused" in str(report)


def test_an_add_under_no_grad_stays() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(6):
            if k == 4:
                with torch.no_grad():
                    x = x + sublayer(self, k, x)
            else:
                x = x + sublayer(self, k, x)
        return self.norm[-1](x)

    _, report = fused_model(model, block_size=3)
    assert (report.norms, report.adds, report.blocks) == (5, 1, 2)
    assert list(report.not_fused.values()) == ["the norm and the read are under different grad or autocast modes"]


@pytest.mark.parametrize("block_size", [1, 2, 4, 6])
def test_any_block_size(block_size: int) -> None:
    _, report = fused_model(sequential, block_size=block_size)
    assert report.norms == 6


def test_a_write_that_is_cast_to_the_dtype_of_the_stream_is_added_in_the_kernel() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(6):
            x = x + sublayer(self, k, x).to(torch.bfloat16)
        return self.norm[-1](x)

    _, report = fused_model(model, block_size=3)
    assert (report.norms, report.adds, report.blocks) == (6, 2, 2)
