"""The operators of the generated kernels keep torch's contract: schema, fake results, no aliases, any layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnres_kernels.operators  # noqa: F401  (defines them)

pytestmark = pytest.mark.interpreter

EPS, READS = 1e-6, 3


def cases() -> dict[str, tuple[str, tuple[Any, ...]]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sources, partial, branch, key = [draw(2, 5, 8) for _ in range(2)], draw(2, 5, 8), draw(2, 5, 8), draw(8)
    keys, logits = draw(READS, 8), [draw(2, 5, READS), draw(2, 5, READS - 1)]
    weight, bias = draw(8), draw(8)
    inter, log_sum, statistics = draw(2, 5, 8), draw(2, 5), draw(5, 10).abs()
    full = ("layer", 1e-5, weight, bias, True, 1, READS, 3.0)
    bare = (None, 0.0, None, None, True, 1, READS, 1.0)
    return {
        "logits": ("generated_logits", (sources[0], keys, 1, EPS)),
        "block": ("generated_block", (partial, branch, keys, 1, EPS)),
        "phase_1": ("generated_phase_1", (sources, logits, 1, 2, READS)),
        "phase_1_of_many": ("generated_phase_1", ([sources[0]] * 13, [logits[0]] * 13, 1, 2, READS)),
        "read": (
            "generated_read",
            (inter, log_sum, sources, logits, partial, key, branch, *full, EPS, torch.float32),
        ),
        "bare_read": ("generated_read", (None, None, sources, logits, None, None, None, *bare, EPS, torch.float32)),
        "read_backward": (
            "generated_read_backward",
            (
                branch,
                branch,
                None,
                statistics,
                inter,
                log_sum,
                sources,
                logits,
                partial,
                key,
                True,
                None,
                *full,
                EPS,
                torch.float32,
            ),
        ),
        "bare_read_backward": (
            "generated_read_backward",
            (
                branch,
                None,
                None,
                statistics,
                None,
                None,
                sources,
                logits,
                None,
                None,
                False,
                None,
                *bare,
                EPS,
                torch.float32,
            ),
        ),
        "sources_backward": (
            "generated_sources_backward",
            ([branch, None], [draw(2, 10), None], [None, partial], sources, logits, keys[:2], 1, READS, EPS),
        ),
        "sources_backward_without_reads": (
            "generated_sources_backward",
            ([None, None], [None, None], [branch, None], sources, logits, keys[:2], 1, READS, EPS),
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_contract(name: str) -> None:
    operator, arguments = cases()[name]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.attnres, operator).default, arguments, test_utils=checks)


@pytest.mark.parametrize("name", cases())
def test_inputs_in_another_layout(name: str) -> None:
    operator, arguments = cases()[name]

    def strided(value: Any) -> Any:
        if isinstance(value, list):
            return [strided(x) for x in value]
        if isinstance(value, Tensor) and value.dim() > 1:
            return value.transpose(0, 1).contiguous().transpose(0, 1)
        return value

    run = getattr(torch.ops.attnres, operator)
    expected, found = run(*arguments), run(*(strided(value) for value in arguments))
    if operator == "generated_read":  # its statistics hold only what the read has
        expected, found = expected[:-1], found[:-1]
    pairs = [(expected, found)] if isinstance(expected, Tensor) else zip(expected, found, strict=True)
    for one, other in pairs:
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("name", cases())
def test_no_tokens(name: str) -> None:
    operator, arguments = cases()[name]

    def emptied(value: Any) -> Any:
        if isinstance(value, list):
            return [emptied(x) for x in value]
        if isinstance(value, Tensor) and value.shape[:2] == (2, 5):
            return value[:, :0]
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == 10:
            return value[:, :0]
        return value

    results = getattr(torch.ops.attnres, operator)(*(emptied(value) for value in arguments))
    for result in [results] if isinstance(results, Tensor) else results:
        assert result.numel() == 0 or torch.equal(result, torch.zeros_like(result))
