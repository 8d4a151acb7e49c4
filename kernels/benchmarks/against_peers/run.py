"""``python -m kernels.benchmarks peers``: reads and whole blocks of reads, ours against torch's and other people's.

Each cell of the grid makes its inputs, lets every arm through the gate (``gate``), and times those that passed
in turn, a copy of memory among them (``timing``). An arm that cannot do the work, fails or is wrong stays in the
record with its reason. The record is handed on after every cell, so that an interrupted run keeps what it measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attnres_compile.models.load_options import LoadOptions
from attnres_compile.progress import each
from attnres_compile.report.comparison import MeasureError
from attnres_compile.report.records import package_version, record_head
from attnres_kernels.launch import tiling, tuning
from attnres_kernels.launch.load_triton import is_interpreted
from attnres_passes.torch_private.inner_compilers import traced_anew

from .arms.arm import EAGER, INDUCTOR, KERNELS, Arm
from .arms.generated import kernel_arms
from .arms.peers import PACKAGES, PEERS, peer_arms
from .arms.torch_code import torch_arms
from .cell import FAILED, WRONG, Cell, measured_cell
from .gate import TOLERANCES
from .timing import make_clock
from .traffic import ideal_traffic
from .work import DIRECTIONS, LEVELS, OP, TRAINING, Shape

SCHEMA_VERSION = 1
KIND = "bench kernels"
COMMAND = "python -m kernels.benchmarks peers"

Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class KernelJob:
    """The grid, of which every combination is a cell, and how to measure it."""

    tokens: tuple[int, ...]
    width: tuple[int, ...]
    sources: tuple[int, ...]
    reads: tuple[int, ...]
    """Of a block."""
    dtype: tuple[str, ...]
    level: tuple[str, ...] = LEVELS
    direction: tuple[str, ...] = DIRECTIONS
    rounds: int = 20
    peers: bool = True
    arms: tuple[str, ...] = ()
    """Parts of the names of the arms to run; all run without any."""
    device: str = "cuda"
    inner: str | None = None
    """The compiler around kernels and of torch code; None for Inductor on a GPU and eager elsewhere."""
    budget: float | None = None
    """Seconds after which no cell is begun."""
    copied: int | None = None
    """Bytes of the tensor that the copy copies; None for what the largest cell's forward moves."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise MeasureError(f"rounds is {self.rounds}: pass at least 1")
        if self.budget is not None and self.budget <= 0:
            raise MeasureError(f"budget is {self.budget}: pass seconds above 0")
        list(self.cells())

    def cells(self) -> Iterator[tuple[Shape, str]]:
        """Every shape and direction. Raises MeasureError for what is no shape."""
        for level in self.level:
            reads = (1,) if level == OP else self.reads
            grid = itertools.product(self.tokens, self.width, self.sources, reads, self.dtype)
            yield from itertools.product((Shape(level, *values) for values in grid), self.direction)

    def torch_device(self) -> torch.device:
        """Raises LoadOptionError if it is not there."""
        return LoadOptions(device=self.device).torch_device()

    def compiler(self) -> str:
        """The name of the inner compiler."""
        return self.inner or (INDUCTOR if self.torch_device().type == "cuda" else EAGER)


Arms = Callable[[Shape, torch.device], list[Arm]]


def measure_kernels(
    job: KernelJob, command: Sequence[str] = (), keep: Keep = lambda _: None, arms: Arms | None = None
) -> dict[str, Any]:
    """Measure a grid and return the record, plain data for JSON.

    With ATTNRES_AUTOTUNE=1 the record says so, and lists what was tuned.

    Args:
        job: the grid.
        command: the words of the command line, for the record.
        keep: is called with the record after every cell.
        arms: gives the arms of a shape on a device, by default all that there are.

    Raises:
        MeasureError: no arm has one of the names.
        LoadOptionError: the device is not there.
        TuningError: ATTNRES_AUTOTUNE is neither 0 nor 1.
    """
    device, start = job.torch_device(), time.monotonic()
    of_shape = arms or all_arms(job)
    record: dict[str, Any] = {
        **record_head(KIND, SCHEMA_VERSION, command, device),
        "job": dataclasses.asdict(job) | {"inner": job.compiler()},
        "tolerances": TOLERANCES,
        "cells": [],
    }
    record["environment"]["versions"] |= {name: package_version(name) for name in PACKAGES}
    record["environment"]["versions"]["cuda"] = torch.version.cuda
    if tuning.is_on():
        record["environment"]["autotune"], record["tuned"] = True, []
    cells = list(job.cells())
    _check_names(job, cells, of_shape, device)
    clock = make_clock(device)
    largest = job.copied or max(round(ideal_traffic(shape).forward * shape.row_bytes) for shape, _ in cells)
    for shape, direction in each(cells, "cell"):
        cell: dict[str, Any] = dataclasses.asdict(shape) | {"direction": direction}
        if job.budget is not None and time.monotonic() - start > job.budget:
            cell["skipped"] = f"the budget of {job.budget:g} s was spent"
        else:
            chosen = [arm for arm in of_shape(shape, device) if is_chosen(arm, job.arms)]
            with traced_anew(tuning.is_on()):
                cell |= measured_cell(Cell(job.rounds, shape, direction == TRAINING, device, clock, largest), chosen)
        record["cells"].append(cell)
        if "tuned" in record:
            record["tuned"] += [kernel for kernel in tuning.tuned_kernels() if kernel not in record["tuned"]]
        keep(record)
    return record


def has_failures(record: dict[str, Any]) -> bool:
    """Whether an arm of ours is wrong or raised."""
    arms = [arm for cell in record["cells"] for arm in cell.get("arms", [])]
    return any(arm["kind"] == KERNELS and arm["status"] in (FAILED, WRONG) for arm in arms)


def all_arms(job: KernelJob) -> Arms:
    """Every arm of a shape on a device: generated kernels, torch code and, if the job asks for them, peers."""
    inner = job.compiler()

    def arms(shape: Shape, device: torch.device) -> list[Arm]:
        own = kernel_arms(shape, inner, kernels_missing(shape, device))
        return [*own, *torch_arms(shape, inner), *(peer_arms(shape, device, inner, PEERS) if job.peers else [])]

    return arms


def kernels_missing(shape: Shape, device: torch.device) -> str:
    """What the generated kernels need and do not have; '' if nothing.

    Args:
        shape: of the work.
        device: that it runs on.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if shape.width > tiling.WIDEST:
        return f"rows of at most {tiling.WIDEST} are held"
    if device.type == "cuda" or (device.type == "cpu" and is_interpreted()):
        return ""
    return f"Triton runs on {device.type} in its interpreter only: set TRITON_INTERPRET=1"


def is_chosen(arm: Arm, names: tuple[str, ...]) -> bool:
    """Whether an arm is among those that are asked for.

    Args:
        arm: of a shape.
        names: parts of names; all arms are chosen without any.
    """
    return not names or any(name in arm.name for name in names)


def _check_names(job: KernelJob, cells: Sequence[tuple[Shape, str]], arms: Arms, device: torch.device) -> None:
    known = [arm.name for level in job.level for arm in arms(next(s for s, _ in cells if s.level == level), device)]
    for name in job.arms:
        if not any(name in one for one in known):
            raise MeasureError(f"no arm has {name!r} in its name: pass a part of {', '.join(dict.fromkeys(known))}")
