"""The sums that a recording adds up, and the probe, against plain autograd."""

from __future__ import annotations

import pytest
import torch

from attnres_kernels.definition.naive import depth_weights
from attnres_kernels.operators import statistics

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def values(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(2, 5, 8).to(dtype).requires_grad_() for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_read_statistics_are_sums_over_tokens(dtype: torch.dtype) -> None:
    sources, key, value = values(3, dtype), torch.randn(8, requires_grad=True), values(1, dtype)[0]
    found = torch.ops.attnres.read_statistics(sources, key, value, 1e-6)
    weights = depth_weights(sources, key, 1e-6).flatten(0, 1)
    assert found.dtype == weights.dtype
    assert not found.requires_grad
    torch.testing.assert_close(found[:3], weights.sum(0))
    torch.testing.assert_close(found[3], -(weights * weights.log()).sum())
    torch.testing.assert_close(found[4], value.to(found.dtype).square().sum() / 8)
    assert found[5] == 10


def test_entropy_of_certain_weights_is_zero() -> None:
    sources = [torch.ones(4, 8), -torch.ones(4, 8)]
    found = torch.ops.attnres.read_statistics(sources, torch.full((8,), 1e4), sources[0], 1e-6)
    assert found.tolist() == [4, 0, 0, 4, 4]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_write_statistics_are_sums_over_tokens(dtype: torch.dtype) -> None:
    branch, partial = values(2, dtype)
    found = torch.ops.attnres.write_statistics(branch, partial)
    assert not found.requires_grad
    wide = [value.to(found.dtype).square().sum() / 8 for value in (branch, partial)]
    torch.testing.assert_close(found, torch.stack([*wide, torch.tensor(10.0)]).to(found.dtype))


@pytest.mark.parametrize("operator", ["read_statistics", "write_statistics"])
def test_operators_are_what_compilers_expect(operator: str) -> None:
    one, other = values(2, torch.float32)
    arguments = ([one, other], torch.randn(8), one, 1e-6) if operator == "read_statistics" else (one, other)
    torch.library.opcheck(getattr(torch.ops.attnres, operator).default, arguments)


def test_probe_gets_the_squared_norm_and_changes_nothing() -> None:
    value, probe = torch.randn(3, 4, requires_grad=True), torch.zeros((), requires_grad=True)
    (statistics.gradient_probe(value, probe) ** 3).sum().backward()
    expected = 3 * value.detach() ** 2
    assert torch.equal(value.grad, expected)
    torch.testing.assert_close(probe.grad, expected.square().sum())
    no_gradient = value.detach()
    assert statistics.gradient_probe(no_gradient, probe) is no_gradient
