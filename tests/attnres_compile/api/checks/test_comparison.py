"""What ``verify`` holds two schedules against where a model amplifies rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.api.checks import comparison
from attnres_compile.capture.analysis import analyse_model
from attnres_compile.compile.graph_runs import Run
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.read_id import ReadId
from tests.end_to_end.models import PreNorm, tokens

TWO_PHASE = "random queries, schedule=two_phase = definition"


class FarFromZero(nn.Module):
    """Every norm takes off a mean that is far larger than what it leaves."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.offset = offset
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(6))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh() + self.offset
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


def two_phase_check(model: nn.Module) -> ac.Check:
    found = ac.verify(model, (torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)),))
    (check,) = [check for check in found.checks if check.name == TWO_PHASE]
    assert all(other.passed for other in found.checks if not other.name.startswith("random queries"))
    return check


def test_a_model_that_amplifies_rounding_is_held_against_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    check = two_phase_check(FarFromZero(1e4))
    assert check.passed
    assert 2e-5 < check.error <= check.tolerance < 1e-1
    assert "one rounding of the reads moves what follows by" in check.wrong_read
    monkeypatch.setattr(comparison, "ROUNDINGS", 0.0)
    check = two_phase_check(FarFromZero(1e4))
    assert not check.passed
    assert check.tolerance == 2e-5
    assert check.wrong_read.startswith("read 0.")


def test_no_other_model_is_given_more_than_the_tolerance() -> None:
    check = two_phase_check(FarFromZero(0.0))
    assert check.passed
    assert (check.tolerance, check.wrong_read) == (2e-5, "")


@pytest.mark.parametrize(
    ("off", "moved", "passes"),
    [(1e-3, 5e-4, True), (1e-3, 1e-6, False), (1e-3, 2e-2, False), (1.0, 5e-4, False), (float("nan"), 5e-4, False)],
)
def test_what_is_off_by_more_than_rounding_is_wrong(off: float, moved: float, passes: bool) -> None:
    """Off by a little and by little more than rounding; by far more; beside rounding that leaves no number right."""
    (graph,) = analyse_model(PreNorm(layers=2), (tokens(),), None, AttnResConfig())
    read = ReadId(0, 1)

    def of(error: float) -> Run:
        return Run([torch.ones(3)], {read: torch.tensor([1.0, 1.0 + error])})

    check = comparison.compare("a check", graph, of(0.0), of(off), lambda: of(moved))
    assert check.passed == passes
    if not passes:
        assert check.wrong_read.startswith("read 0.1 of")
        assert check.tolerance == 2e-5


def test_an_output_that_is_off_while_its_reads_are_not_is_wrong() -> None:
    (graph,) = analyse_model(PreNorm(layers=2), (tokens(),), None, AttnResConfig())
    read = {ReadId(0, 1): torch.ones(3)}
    one, other, moved = (Run([torch.tensor([1.0, value])], read) for value in (1.0, 1.1, 1.0))
    check = comparison.compare("a check", graph, one, other, lambda: moved)
    assert (check.passed, check.wrong_read) == (False, "no read is off, but an output is")
