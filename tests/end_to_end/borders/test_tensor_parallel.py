"""Models under parallelize_module, their stream a plain tensor or a DTensor, all tokens on each rank or a part of them:
loss and every gradient are those of one process, fp64."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.borders import tensor_ranks
from tests.processes import run_ranks

pytestmark = pytest.mark.processes

CELLS = [
    ("sequence", "whole"),
    ("sequence", "whole", "prepared after"),
    ("sequence", "per layer", tensor_ranks.SPREAD),
    ("sequence", "per layer", "checkpoint", "aot_eager"),
    ("sequence, DTensor stream", "whole", "aot_eager", tensor_ranks.SPREAD),
    ("sequence, DTensor stream", "per layer", "prepared after"),
    ("sequence, DTensor stream", "per layer", "checkpoint"),
    ("tensor", "per layer", tensor_ranks.SPREAD),
]


def test_two_ranks(tmp_path: Path) -> None:
    run_ranks(tensor_ranks.compare, 2, str(tmp_path / "store"), CELLS)


def test_what_is_around_training(tmp_path: Path) -> None:
    run_ranks(tensor_ranks.around, 2, str(tmp_path / "store"), str(tmp_path / "saved"))


def test_plans_of_transformers(tmp_path: Path) -> None:
    run_ranks(tensor_ranks.of_transformers, 2, str(tmp_path / "store"), str(tmp_path), [("llama", "whole")])
