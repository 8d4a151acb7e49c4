"""Runs the ranks of a test: processes that fork from one that has imported torch and the packages already."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PRELOADED = ("torch._dynamo", "torch.distributed.pipelining", "transformers", "attnres_compile.pipelines.pipeline")
"""Imports take several seconds of each process, and are done once. One that fails there is made by the process."""


def run_ranks(
    target: Callable[..., None], size: int, *args: Any, ends: Sequence[int] | None = None, timeout: float = 600
) -> None:
    """Call ``target(rank, size, *args)`` in one process per rank.

    target: a function of a module; args: what can be pickled; ends: the exit codes to expect, by default all 0;
    timeout: in seconds, for all ranks together. A rank that ends otherwise fails the test, with what it raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory() as folder:
        notes = [Path(folder, f"{rank}.txt") for rank in range(size)]
        ranks = [
            context.Process(target=_run_rank, args=(note, target, rank, size, *args), daemon=True)
            for rank, note in enumerate(notes)
        ]
        for process in ranks:
            process.start()
        end = time.monotonic() + timeout
        try:
            for process in ranks:
                process.join(max(0.0, end - time.monotonic()))
            found = [process.exitcode for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        raised = "\n".join(f"rank {rank}:\n{note.read_text()}" for rank, note in enumerate(notes) if note.exists())
        assert found == list(ends or [0] * size), (
            f"exit codes {found} (None: still running after {timeout} s)\n{raised}"
        )


def _run_rank(note: Path, target: Callable[..., None], *args: Any) -> None:
    import torch

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)  # the ranks share the cores of one machine
    try:
        target(*args)
    except BaseException:
        note.write_text(traceback.format_exc())
        raise
