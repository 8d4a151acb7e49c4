"""Sharded and replicated models in parts train as one process does: the losses of five steps, fp64."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.borders import ranks
from tests.processes import run_ranks


def test_two_ranks(tmp_path: Path) -> None:
    cells = [
        (way, compiled)
        for way in ("fsdp_then_compile", "compile_then_fsdp", "ddp", "checkpointed_fsdp", "tp", "checkpointed_tp")
        for compiled in ("per_block", "whole")
        if not way.startswith("checkpointed") or compiled == "per_block"
    ]
    run_ranks(ranks.train, 2, str(tmp_path / "store"), cells)


def test_four_ranks(tmp_path: Path) -> None:
    cells = [(way, compiled) for way in ("hsdp", "fsdp_tp") for compiled in ("per_block", "whole")]
    run_ranks(ranks.train, 4, str(tmp_path / "store"), cells)
