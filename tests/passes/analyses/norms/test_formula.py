"""What norms compute is found by executing them: once for all that are alike, and whatever is ambient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from attnres_passes.analyses.norms import norm_behind as finder
from attnres_passes.analyses.norms.norm_behind import Norm, NotFused, norm_behind
from attnres_passes.ir.levels import is_depth_attention
from tests.passes.analyses.norms.norm_models import (
    NO_NORM,
    WIDTH,
    Stack,
    Written,
    dropped,
    llama,
    named,
    rewritten_model,
    root_mean_square,
    spread,
    stacked,
    written,
)
from tests.passes.analyses.norms.test_norm_behind import RECOGNISED
from tests.passes.helpers import sample


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    regions: list[Any] = []
    honest = finder.formula_of

    def formula_of(region: Any) -> Any:
        regions.append(region)
        return honest(region)

    monkeypatch.setattr(finder, "formula_of", formula_of)
    return regions


def test_what_is_alike_is_executed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = written(llama)
    regions = counted(monkeypatch)
    found.norms()
    assert len({region.key() for region in regions}) == len(regions) > 0
    once = len(regions)
    norm_behind(next(node for node in found.gm.graph.nodes if is_depth_attention(node)), found.plan)
    assert len(regions) == 2 * once


def test_what_differs_in_a_constant_is_told_apart() -> None:
    torch.manual_seed(0)
    model = Stack(*(nn.LayerNorm(WIDTH, eps=eps) for eps in (1e-3, 1e-5, 1e-6, 1e-12)))
    norms = rewritten_model(model, sample().float()).norms()
    assert [norm.eps for norm in norms] == [1e-5, 1e-6, 1e-12, 1e-12]


def test_what_differs_in_the_place_of_a_vector_is_told_apart() -> None:
    plain = Written(lambda self, x: root_mean_square(x) * self.weight + self.bias)
    twice = Written(lambda self, x: root_mean_square(x) * self.weight + self.weight)
    torch.manual_seed(0)
    norms = rewritten_model(Stack(plain, plain, twice), sample().float()).norms()
    assert [(named(norm.weight), named(norm.bias)) for norm in norms] == [
        ("weight", "bias"),
        ("weight", "weight"),
        ("weight", "weight"),
    ]


def test_what_differs_in_wiring_is_told_apart() -> None:
    """Half of the value over its root mean square, and half of it over that of the whole."""

    def norm(is_norm: bool) -> Written:
        def function(self: Written, x: Tensor) -> Tensor:
            whole = x.clone()
            half = whole * 0.5
            return half * (half if is_norm else whole).square().mean(-1, keepdim=True).rsqrt() * self.weight

        return Written(function)

    torch.manual_seed(0)
    verdicts = rewritten_model(Stack(norm(True), norm(True), norm(False)), sample().float()).verdicts()
    assert [isinstance(verdict, Norm) for verdict in verdicts] == [True, False, False]


def test_autocast_around_everything() -> None:
    """The squares are added in bf16 there, which nothing but the dtypes in between tells."""

    class Autocast(Stack):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    def function(self: Written, x: Tensor) -> Tensor:
        x = x.clone()
        mean_square = (x.square() @ x.new_ones(WIDTH, 1)) / WIDTH
        return x * (mean_square + 1e-6).rsqrt()

    torch.manual_seed(0)
    layer_norms, by_product = (
        rewritten_model(Autocast(*(norm() for _ in range(3))), sample().float()).verdicts()
        for norm in (lambda: nn.LayerNorm(WIDTH), lambda: Written(function))
    )
    assert all(isinstance(verdict, Norm) for verdict in layer_norms)
    assert set(by_product) == {NotFused("dtypes inside the norm are those of autocast or of the device")}


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


AMBIENT: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "device": lambda: default_device("meta"),
    "dtype": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "fake": lambda: FakeTensorMode(allow_non_fake_inputs=True),
}


def of_integers(self: Written, x: Tensor) -> Tensor:
    """The default dtype would show in the quotient of integers, and autocast in the product."""
    x = x.clone()
    ones = torch.ones_like(x, dtype=torch.int64)
    mean_square = (x.square() @ x.new_ones(WIDTH)).unsqueeze(-1) / ones.sum(-1, keepdim=True)
    return x * (mean_square + 1e-6 * (ones[..., :1] / 1)).rsqrt()


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("name", ["LayerNorm", "Llama", "integers"])
def test_ambient_state_neither_matters_nor_changes(ambient: str, name: str) -> None:
    found = written(of_integers) if name == "integers" else stacked(RECOGNISED[name][0])
    expected = found.norms()
    before = torch.get_rng_state()
    with AMBIENT[ambient]():
        grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        assert found.norms() == expected
        assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == (grad, autocast)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_generator_is_left_alone_by_what_draws() -> None:
    found = written(dropped)
    before = torch.get_rng_state()
    found.verdicts()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("width", [2048, 8192])
def test_unbiased_variance_shows_at_any_width(width: int) -> None:
    class Wide(nn.Module):
        def __init__(self, correction: int) -> None:
            super().__init__()
            self.linear = nn.ModuleList(nn.Linear(width, width, bias=False, device="meta") for _ in range(2))
            self.correction = correction

        def norm(self, x: Tensor) -> Tensor:
            return (x - x.mean(-1, keepdim=True)) * (spread(x, self.correction) + 1e-5).rsqrt()

        def forward(self, x: Tensor) -> Tensor:
            for linear in self.linear:
                x = x + linear(self.norm(x))
            return self.norm(x)

    x = torch.empty(2, 3, width, device="meta")
    assert {norm.kind for norm in rewritten_model(Wide(0), x).norms()} == {"layer"}
    assert set(rewritten_model(Wide(1), x).verdicts()) == {NotFused(NO_NORM)}
