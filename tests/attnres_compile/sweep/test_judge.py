"""What becomes of a model has one name each; no error of a model or of ours ends the sweep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnres_compile.api.verification import Check, Verification
from attnres_compile.model.errors import CaptureError
from attnres_compile.sweep import judge as judging
from attnres_compile.sweep.judge import judge
from attnres_compile.sweep.making.errors import NotMadeError
from attnres_compile.sweep.making.small_model import SmallModel, Try, first_that_runs
from attnres_compile.sweep.record import ModelRecord, Outcome
from attnres_passes.ir.levels import LevelError


class Layer(nn.Module):
    def __init__(self, post_norm: bool) -> None:
        super().__init__()
        self.norm, self.linear, self.post_norm = nn.LayerNorm(8), nn.Linear(8, 8), post_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear(x)) if self.post_norm else x + self.linear(self.norm(x))


class Model(nn.Module):
    def __init__(self, post_norm: bool = False, clamped: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(post_norm) for _ in range(4))
        self.norm, self.clamped = nn.LayerNorm(8), clamped

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x.clamp(-4, 4) if self.clamped and index < 2 else x)
        return self.norm(x)


def made(**options: Any) -> Callable[[], SmallModel]:
    return lambda: SmallModel(Model(**options).eval(), (torch.randn(1, 3, 8),), {}, "as it is")


def judged(make: Callable[[], SmallModel]) -> ModelRecord:
    return judge("toy", "transformers", make)


def test_a_whole_stream_is_rewritten_and_verified() -> None:
    record = judged(made())
    assert record.outcome is Outcome.REWRITTEN
    (stream,) = record.streams
    assert (stream.writes, stream.reads, stream.unnormed, stream.left_out) == (4, 5, 0, 0)
    assert list(stream.at.values()) == [4]
    assert record.layers == {f"{Layer.__module__}.Layer": 4}
    assert record.verified["checks"] == 5
    assert record.verified["max_error"] < 1e-5
    assert set(record.seconds) == {"make", "plan", "verify"}


def test_a_piece_of_a_stream_is_partial() -> None:
    record = judged(made(clamped=True))
    assert record.outcome is Outcome.PARTIAL
    assert record.streams[0].left_out > 0


def test_what_is_declined_keeps_its_reason_and_line() -> None:
    record = judged(made(post_norm=True))
    assert record.outcome is Outcome.DECLINED
    reason, writes, at = record.declined[0]
    assert (reason, writes) == ("post_norm", 4)
    assert at.startswith("test_judge.py:")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotMadeError("no such thing"), Outcome.NOT_MADE),
        (MemoryError(), Outcome.LIMIT),
        (RuntimeError("can't allocate memory: you tried"), Outcome.LIMIT),
        (CaptureError("found. Do."), Outcome.REFUSED),
        (LevelError("a rule is broken"), Outcome.FAULT),
        (KeyError("raw"), Outcome.FAULT),
    ],
)
def test_every_error_has_an_outcome_and_a_reason(error: Exception, outcome: Outcome) -> None:
    def fail() -> SmallModel:
        raise error

    record = judged(fail)
    assert record.outcome is outcome
    assert record.reason.startswith(type(error).__name__)
    assert ("test_judge.py" in record.reason) == (outcome is Outcome.FAULT)


def test_a_rewrite_that_verify_does_not_pass_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Check("zero queries", "float32", False, 0.5, 1e-5, "read 0.1 of layers")
    monkeypatch.setattr(judging, "verify", lambda *_, **__: Verification((check,)))
    record = judged(made())
    assert record.outcome is Outcome.WRONG
    assert record.reason == "zero queries (float32): 5.0e-01, read 0.1 of layers"


@pytest.mark.parametrize(("others", "outcome"), [((), Outcome.REFUSED), ((0.5,), Outcome.WRONG)])
def test_a_rewrite_that_stops_with_its_reason_is_refused_unless_a_number_is_wrong(
    others: tuple[float, ...], outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Check("compiled parts", "float32", False, float("inf"), 1e-5, "left 1 out", refused=True)
    wrong = [Check("zero queries", "float32", False, error, 1e-5, "read 0.1 of layers") for error in others]
    monkeypatch.setattr(judging, "verify", lambda *_, **__: Verification((stopped, *wrong)))
    record = judged(made())
    assert record.outcome is outcome
    assert record.reason.startswith("compiled parts (float32): inf, left 1 out")


def test_a_rewrite_that_could_not_be_checked_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Check("zero queries", "float64", False, float("nan"), 0.0, skipped="inside")
    monkeypatch.setattr(judging, "verify", lambda *_, **__: Verification((check,)))
    record = judged(made())
    assert (record.outcome, record.reason) == (Outcome.WRONG, "no check could be made")


def test_the_first_that_is_built_and_runs_is_taken() -> None:
    def no_such_width() -> nn.Module:
        raise ValueError("does not divide")

    inputs = [((torch.randn(1, 3, 7),), {}), ((torch.randn(1, 3, 8),), {})]
    tries = [Try("small", no_such_width, lambda _: inputs), Try("large", Model, lambda _: inputs)]
    small = first_that_runs(tries)
    assert small.args[0].shape == (1, 3, 8)
    assert small.how == "large, on argument 0 [1, 3, 8]"
    assert not small.module.training


def test_none_that_runs_says_why_of_each() -> None:
    wrong = [((), {"x": torch.randn(1, 7)})]
    with pytest.raises(NotMadeError, match=r"small, on x: RuntimeError: .*adjustments\.json"):
        first_that_runs([Try("small", Model, lambda _: wrong)])


def test_a_model_that_stays_large_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnres_compile.sweep.making.small_model.MAX_PARAMETERS", 10)
    with pytest.raises(NotMadeError, match="parameters"):
        first_that_runs([Try("small", Model, lambda _: [((torch.randn(1, 8),), {})])])


def test_a_reason_names_no_folder_of_the_machine() -> None:
    def make() -> SmallModel:
        raise CaptureError(f"it stops at {__file__}:12: here, (see {__file__})")

    record = judged(make)
    assert record.reason == "CaptureError: it stops at test_judge.py:12: here, (see test_judge.py)"
