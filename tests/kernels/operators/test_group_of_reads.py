"""What runs on a GPU at real sizes (``test_on_gpu``), here in the interpreter: eager, and through a compiler."""

from __future__ import annotations

import pytest

from tests.kernels.operators.group_of_reads import largest_error

pytestmark = pytest.mark.interpreter

TOLERANCE = 1e-2


@pytest.mark.parametrize("two_phase", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_group_of_reads_and_every_gradient(compiled: bool, two_phase: bool) -> None:
    assert largest_error(5, 33, 3, compiled, two_phase, "cpu") < TOLERANCE
