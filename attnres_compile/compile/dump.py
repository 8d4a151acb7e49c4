"""What is kept of a compilation: files under ``ATTNRES_DUMP``, artifacts in torch's trace, and checks of levels."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Collection
from pathlib import Path

from torch.fx import GraphModule

from attnres_kernels.launch.load_triton import DUMP_VARIABLE
from attnres_passes.ir.levels import Level, check_level
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ir.text import graph_text
from attnres_passes.torch_private.structured_trace import trace_artifact, trace_graph

_numbers = itertools.count()


class LevelDump:
    """Called with the graph behind every pass of one compilation: checks its level and, if asked, keeps its text.

    only: the reads of the plan that the graph holds, if it is a piece of its model; None for all.
    """

    def __init__(self) -> None:
        directory = os.environ.get(DUMP_VARIABLE)
        self.directory = Path(directory) if directory else None
        self.graph = next(_numbers) if self.directory else 0
        self.written = 0
        self.only: Collection[ReadId] | None = None
        self.began = time.perf_counter()

    def __call__(self, gm: GraphModule, level: Level, plan: Plan) -> None:
        check_level(gm, level, plan, self.only)
        trace_graph(f"attnres_{level.value}", lambda: graph_text(gm))
        seconds = time.perf_counter() - self.began
        head = f"# {level.value} graph, {seconds:.2f} s after the compilation began"
        self._write(f"{level.value}.py", f"{head}\n{graph_text(gm)}")

    def plan(self, plan: Plan) -> None:
        """Keep the plan, as a table in a file and as JSON in torch's trace."""
        self._write("plan.txt", f"{plan}\n")
        trace_artifact("attnres_plan", "json", lambda: json.dumps(plan.to_dict()))

    def schedule(self, text: str) -> None:
        """Keep the cost model's tables, and what reads are bound to."""
        self._write("schedule.txt", f"{text}\n")
        trace_artifact("attnres_schedule", "string", lambda: text)

    def _write(self, name: str, text: str) -> None:
        """Write ``<graph>_<files so far>_<name>`` into the dump directory, if there is one."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / f"{self.graph:03d}_{self.written:02d}_{name}").write_text(text)
        self.written += 1
