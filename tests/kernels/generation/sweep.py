"""Which shapes the sweeps of kernels draw from, and how close to fp64 a kernel has to be."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

EPS = 1e-6
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

ROWS = st.sampled_from((0, 1, 2, 17))
WIDTHS = st.sampled_from((1, 2, 3, 8, 33, 64, 100))
DTYPES = st.sampled_from((torch.float32, torch.bfloat16, torch.float16))
NORMS = st.sampled_from(
    [None, *((kind, weight, bias) for kind in ("rms", "layer") for weight in (0, 1) for bias in (0, 1))]
)


def sweep(examples: int) -> settings:
    """So many examples, the same in every run."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        phases=(Phase.explicit, Phase.generate),
    )


def norm_eps(width: int) -> float:
    """A LayerNorm of one feature divides zero by its eps; a larger one keeps the comparison well conditioned."""
    return 1e-5 if width > 3 else 1e-1


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    # In half precision an error is relative to what was added up, normal numbers times a factor of 3, which may cancel.
    largest = expected.abs().max().clamp_min(1e-3 if tolerance < 1e-4 else 3.0)
    error = float((actual.double() - expected).abs().max() / largest)
    assert error < tolerance, f"{what} is off by {error:.1e}"
