"""How far the mean of the sources is from their sum behind each norm, against what the norm gives of both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnres_compile as ac

WIDTH, EPS = 6, 1e-3


class Net(nn.Module):
    """Sublayers whose outputs are small beside the eps of the norms before them."""

    def __init__(self, norm: str, eps: float = EPS, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.eps = norm, eps
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
        self.seen: list[Tensor] = []
        self.double()

    def normed(self, x: Tensor) -> Tensor:
        if self.norm == "layer":
            return F.layer_norm(x, (WIDTH,), eps=self.eps)
        if self.norm == "rms":
            return F.rms_norm(x, (WIDTH,), eps=self.eps)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True).add_(self.eps)) * 2.0

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        for linear in self.linears:
            x = x + 0.03 * linear(self.normed(x))
        return self.normed(x)

    def states(self, x: Tensor) -> list[Tensor]:
        found = [x.sinh()]
        for linear in self.linears:
            found.append(found[-1] + 0.03 * linear(self.normed(found[-1])))
        return found[1:]


def example() -> Tensor:
    return 0.02 * torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["layer", "rms", "by hand"])
def test_every_deviation_is_that_of_its_norm(norm: str) -> None:
    model, x = Net(norm), example()
    found = ac.verify(model, (x,), block_size=1)
    assert found.passed
    with torch.no_grad():
        for index, (one, state) in enumerate(zip(found.deviations, model.states(x), strict=True), start=2):
            assert one.num_sources == index
            assert one.eps == (EPS,)
            right, off = model.normed(state), model.normed(state / index)
            assert one.deviation == pytest.approx(float((right - off).abs().max() / right.abs().max()), rel=1e-9)
    assert found.deviations[0].deviation > 0.01
    text = str(found)
    assert '3 of 3 normed reads feel scale="mean"' in text
    assert "4 sources, eps 0.001" in text
    assert found.to_dict()["deviations"][0]["eps"] == (EPS,)


def test_nothing_is_said_where_no_norm_feels_it() -> None:
    found = ac.verify(Net("layer", eps=1e-12), (example(),), block_size=1)
    assert all(one.deviation < 1e-4 for one in found.deviations)
    assert len(found.deviations) == 3
    assert "feel" not in str(found)


def test_a_sum_deviates_nowhere() -> None:
    assert ac.verify(Net("layer"), (example(),), block_size=1, scale="sum").deviations == ()


def test_what_is_measured_changes_nothing() -> None:
    """A norm with dropout in it draws the same twice, and the plain model runs as it would."""

    class Dropped(Net):
        def normed(self, x: Tensor) -> Tensor:
            return F.layer_norm(F.dropout(x, 0.3), (WIDTH,), eps=1e-12)

    found = ac.verify(Dropped("layer"), (example(),), block_size=1)
    assert found.passed
    assert all(one.deviation < 1e-4 for one in found.deviations)
