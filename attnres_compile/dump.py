"""What is kept of a compilation: numbered files per stage under ``ATTNRES_DUMP``, and checks of each level."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from torch.fx import GraphModule

from attnres_kernels.load_triton import DUMP_VARIABLE
from attnres_passes.levels import Level, check_level
from attnres_passes.plan import Plan
from attnres_passes.text import graph_text

_numbers = itertools.count()


class Stages:
    """Called after each stage of one compilation: checks the level and, if asked, writes the graph's text."""

    def __init__(self) -> None:
        directory = os.environ.get(DUMP_VARIABLE)
        self.directory = Path(directory) if directory else None
        self.graph = next(_numbers) if self.directory else 0
        self.stage = 0
        self.began = time.perf_counter()

    def __call__(self, gm: GraphModule, level: Level, plan: Plan) -> None:
        check_level(gm, level, plan)
        seconds = time.perf_counter() - self.began
        self.write(
            f"{level.value}.py",
            f"# {level.value} graph, {seconds:.2f} s after the compilation began\n{graph_text(gm)}",
        )

    def write(self, name: str, text: str) -> None:
        """Write ``<graph>_<stage>_<name>`` into the dump directory, if there is one."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / f"{self.graph:03d}_{self.stage:02d}_{name}").write_text(text)
        self.stage += 1
