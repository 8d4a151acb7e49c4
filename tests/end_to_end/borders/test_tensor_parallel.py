"""Models under parallelize_module, their stream a plain tensor or a DTensor, all tokens on each rank or a part of them:
loss and every gradient are those of one process, fp64."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.borders import tensor_ranks
from tests.processes import run_ranks


def test_two_ranks(tmp_path: Path) -> None:
    cells = [
        (plan, compiled, *more)
        for plan in tensor_ranks.PLANS
        for compiled in ("whole", "per layer")
        for more in ((), ("prepared after",), (tensor_ranks.SPREAD,), ("aot_eager", "checkpoint"))
        if not ("checkpoint" in more and compiled == "whole")
    ]
    run_ranks(tensor_ranks.compare, 2, str(tmp_path / "store"), cells)


def test_what_is_around_training(tmp_path: Path) -> None:
    run_ranks(tensor_ranks.around, 2, str(tmp_path / "store"), str(tmp_path / "saved"))


def test_plans_of_transformers(tmp_path: Path) -> None:
    cells = [("llama", "whole"), ("llama", "per layer")]
    run_ranks(tensor_ranks.of_transformers, 2, str(tmp_path / "store"), str(tmp_path), cells)
