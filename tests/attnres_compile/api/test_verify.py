"""``verify`` against what is independent of capture: faults that no comparison of captured graphs can see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.api import verify_eager
from attnres_compile.api.verification import Check
from attnres_compile.api.verify_eager import WHOLE
from attnres_compile.model import errors
from tests.end_to_end.models import PreNorm, tokens


def eager_check(model: nn.Module, *args: Any, **options: Any) -> Check:
    found = ac.verify(model, args, **options)
    (check,) = [check for check in found.checks if check.name == WHOLE]
    assert found.passed == all(check.passed for check in found.checks)
    return check


def test_a_whole_graph_is_compared_in_fp64_with_gradients() -> None:
    model, ids = PreNorm(layers=2), tokens()
    before = copy.deepcopy(model.state_dict())
    check = eager_check(model, ids)
    assert check.passed
    assert check.dtype == "float64"
    assert check.wrong_read == "2 reads"
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not hasattr(model, "attnres")


class OtherWhenCompiled(nn.Module):
    """Takes another way while it is traced, so that the captured graph is not what the module computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = PreNorm(layers=2), 2.0

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.inner(ids)
        return out * self.other if torch.compiler.is_compiling() else out


def test_a_graph_that_is_not_the_module_is_found() -> None:
    found = ac.verify(OtherWhenCompiled(), (tokens(),))
    assert not found.passed
    assert [check.name for check in found.checks if not check.passed] == [WHOLE]
    assert "output 0 is off, as it is where torch.compile traces the plain model" in str(found)


def test_a_fault_of_the_rewrite_is_not_said_to_be_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with another model than the one that is rewritten."""
    monkeypatch.setattr("attnres_compile.api.verify_eager.prepare", _prepared_with_a_fault)
    found = ac.verify(PreNorm(layers=2), (tokens(),))
    assert [(check.name, check.wrong_read) for check in found.checks if not check.passed] == [
        (WHOLE, "output 0 is off")
    ]


def _prepared_with_a_fault(model: nn.Module, *args: Any, **options: Any) -> ac.Plan:
    plan = ac.prepare(model, *args, **options)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    return plan


class DetachedWhenCompiled(nn.Module):
    """Equal outputs, and no gradient for one parameter while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PreNorm(layers=2)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, ids: Tensor) -> Tensor:
        scale = self.scale.detach() if torch.compiler.is_compiling() else self.scale
        out: Tensor = self.inner(ids)
        return out * scale.sum()


def test_a_gradient_that_is_lost_is_found() -> None:
    found = ac.verify(DetachedWhenCompiled(), (tokens(),))
    assert [(check.name, check.wrong_read) for check in found.checks if not check.passed] == [
        (WHOLE, "the gradient of scale is off, as it is where torch.compile traces the plain model")
    ]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_hides_no_other(value: float) -> None:
    """What is held against the largest gradient would be nothing beside an infinite one."""
    right, wrong = torch.ones(3), torch.ones(3) * 2
    odd = torch.tensor([1.0, value])
    expected = verify_eager._Result([right], {"odd": odd, "other": right})
    same = verify_eager._errors(expected, verify_eager._Result([right], {"odd": odd, "other": right}))
    assert set(same.values()) == {0.0}
    errors = verify_eager._errors(expected, verify_eager._Result([right], {"odd": odd, "other": wrong}))
    assert errors["the gradient of other"] == 1.0 / verify_eager.GRADIENTS_OFF


def test_another_number_of_outputs_is_off() -> None:
    one, two = (verify_eager._Result([torch.ones(3)] * count, {}) for count in (1, 2))
    assert set(verify_eager._errors(one, two).values()) == {float("inf")}


class NoBackwardWhenCompiled(nn.Module):
    """Has a backward, but not while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PreNorm(layers=2)

    def forward(self, ids: Tensor) -> Tensor:
        out = self.inner(ids).exp()
        result: Tensor = out * 2
        if torch.compiler.is_compiling():
            out.zero_()
        return result


def test_a_backward_that_fails_fails_the_check() -> None:
    found = ac.verify(NoBackwardWhenCompiled(), (tokens(),))
    (wrong,) = [check for check in found.checks if not check.passed]
    assert wrong.name == WHOLE
    assert "no gradients to compare: one of the variables" in wrong.wrong_read


class WithoutGradients(nn.Module):
    """Writes over what its backward needs, so that it has no backward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PreNorm(layers=2)

    def forward(self, ids: Tensor) -> Tensor:
        out = self.inner(ids).exp()
        result: Tensor = out * 2
        out.zero_()
        return result


def test_a_model_without_a_backward_is_compared_by_its_outputs() -> None:
    check = eager_check(WithoutGradients(), tokens())
    assert check.passed
    assert "no gradients to compare: one of the variables needed for gradient" in check.wrong_read


def test_large_models_keep_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnres_compile.api.verify.LARGEST_COPY", 0)
    check = eager_check(PreNorm(layers=2), tokens())
    assert check.passed
    assert check.dtype == "float32"


def test_an_input_that_a_call_changes_is_copied() -> None:
    """A cache that is no tensor, and no pytree that torch knows."""

    class Cache:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PreNorm(layers=2)

        def forward(self, ids: Tensor, cache: Cache) -> Tensor:
            cache.seen.append(ids)
            out: Tensor = self.inner(ids) * len(cache.seen)
            return out

    cache = Cache()
    assert ac.verify(Cached(), (tokens(), cache)).passed
    assert len(cache.seen) == 0


class MaskedByTheLeastNumber(nn.Module):
    """Its mask is made in torch's default dtype, which cannot hold the least number of a wider one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PreNorm(layers=2)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.inner(ids)
        return out + torch.full(ids.shape[-1:], torch.finfo(out.dtype).min).clamp_min(0)[:, None]


def test_a_model_that_does_not_run_in_fp64_is_verified_without() -> None:
    model, ids = MaskedByTheLeastNumber(), tokens()
    with pytest.raises(RuntimeError, match="overflow"):
        copy.deepcopy(model).double()(ids)
    found = ac.verify(model, (ids,))
    assert found.passed
    assert [check.skipped.split(" (")[0] for check in found.checks if check.skipped] == [
        "the plain model does not run in float64"
    ]
    assert {check.dtype for check in found.checks if not check.skipped} == {"float32"}


class SetByListsOfTensors(nn.Module):
    """Runs in eager; Dynamo breaks the graph at an assignment that it then cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PreNorm(layers=2)

    def forward(self, ids: Tensor) -> Tensor:
        chosen = torch.ones(ids.shape, dtype=torch.bool)
        rows, columns = torch.where(ids >= 0)
        chosen[list(rows), list(columns)] = False
        out: Tensor = self.inner(ids)
        return out + chosen.sum()


def test_a_model_that_cannot_be_compiled_is_said_to_be_that() -> None:
    model = SetByListsOfTensors()
    model(tokens())
    with pytest.raises(errors.CaptureError, match=r"does not run SetByListsOfTensors .*test_verify.py:\d+: "):
        ac.verify(model, (tokens(),))
    assert not hasattr(model, "attnres")


def test_a_rewritten_model_that_stops_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is none of ours, of the rewritten model alone."""

    def stops(self: nn.Module, *args: Any) -> None:
        raise ZeroDivisionError("a fault")

    def prepared(model: nn.Module, *args: Any, **options: Any) -> ac.Plan:
        plan = ac.prepare(model, *args, **options)
        model.register_forward_hook(stops)
        return plan

    monkeypatch.setattr("attnres_compile.api.verify_eager.prepare", prepared)
    check = eager_check(PreNorm(layers=2), tokens())
    assert not check.passed
    assert not check.refused
    assert check.wrong_read.startswith("the rewritten model stopped, where torch.compile runs the plain one: ")
    assert "a fault" in check.wrong_read
