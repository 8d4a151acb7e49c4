"""``attnres bench kernels``: reads and whole blocks of reads, ours against torch's and other people's, kept as JSON.

Each cell of the grid makes its inputs, lets every arm through the gate (``gate``), and times those that passed
in turn, a copy of memory among them (``timing``). An arm that cannot do the work, fails or is wrong stays in the
record with its reason. The record is handed on after every cell, so that an interrupted run keeps what it measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnres_compile.measure.environment import describe_environment, package_version
from attnres_compile.measure.measure import MeasureError, paired_ratio
from attnres_compile.models.load_options import LoadOptions
from attnres_kernels.launch import tiling, tuning
from attnres_kernels.launch.load_triton import is_interpreted
from attnres_passes.torch_private import torch_compat

from .arms import EAGER, INDUCTOR, KERNELS, PEER, TORCH, Arm, kernel_arms, torch_arms
from .gate import TOLERANCES, Reference, errors, reference
from .peers import PACKAGES, PEERS, peer_arms
from .timing import (
    CpuClock,
    CudaClock,
    Taken,
    Timed,
    copy_call,
    first_line,
    make_clock,
    time_in_turn,
)
from .traffic import ideal_traffic
from .work import DIRECTIONS, LEVELS, OP, TRAINING, Inputs, Shape, make_inputs

SCHEMA_VERSION = 1
KIND = "bench kernels"
MEASURED, SAME, UNSUPPORTED, FAILED, WRONG = "measured", "same", "unsupported", "failed", "wrong"
_COPY = "copy"

Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class KernelJob:
    """The grid and how to measure it.

    reads: of a block; arms: parts of the names of the arms to run, all without; inner: the compiler around kernels and
    of torch code, None for Inductor on a GPU and eager elsewhere; budget: seconds after which no cell is begun.
    """

    tokens: tuple[int, ...]
    width: tuple[int, ...]
    sources: tuple[int, ...]
    reads: tuple[int, ...]
    dtype: tuple[str, ...]
    level: tuple[str, ...] = LEVELS
    direction: tuple[str, ...] = DIRECTIONS
    rounds: int = 20
    peers: bool = True
    arms: tuple[str, ...] = ()
    device: str = "cuda"
    inner: str | None = None
    budget: float | None = None

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
        return self.inner or (INDUCTOR if self.torch_device().type == "cuda" else EAGER)


Arms = Callable[[Shape, torch.device], list[Arm]]


def bench_kernels(
    job: KernelJob, command: Sequence[str] = (), keep: Keep = lambda _: None, arms: Arms | None = None
) -> dict[str, Any]:
    """Measure ``job`` and return the record, plain data for JSON.

    keep: called with the record after every cell; arms: gives the arms of a shape, by default all that there are.

    With ATTNRES_AUTOTUNE=1 the record says so, and lists what was tuned.

    Raises MeasureError, LoadOptionError, TuningError.
    """
    device, start = job.torch_device(), time.monotonic()
    of_shape = arms or _all_arms(job)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "command": " ".join(command),
        "environment": describe_environment(device),
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
    largest = max(round(ideal_traffic(shape).forward * shape.row_bytes) for shape, _ in cells)
    for shape, direction in cells:
        cell: dict[str, Any] = dataclasses.asdict(shape) | {"direction": direction}
        if job.budget is not None and time.monotonic() - start > job.budget:
            cell["skipped"] = f"the budget of {job.budget:g} s was spent"
        else:
            chosen = [arm for arm in of_shape(shape, device) if _is_chosen(arm, job.arms)]
            with torch_compat.traced_anew(tuning.is_on()):
                cell |= _measured(_Cell(job, shape, direction == TRAINING, device, clock, largest), chosen)
        record["cells"].append(cell)
        if "tuned" in record:
            record["tuned"] += [kernel for kernel in tuning.tuned_kernels() if kernel not in record["tuned"]]
        keep(record)
    return record


def _measured(cell: _Cell, arms: Sequence[Arm]) -> dict[str, Any]:
    """The record of a cell, or why there is none: its inputs alone may be too large."""
    try:
        return cell.measure(arms)
    except (torch.OutOfMemoryError, MeasureError) as error:
        reason = first_line(error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"skipped": reason}


def has_failures(record: dict[str, Any]) -> bool:
    """Whether an arm of ours is wrong or raised."""
    arms = [arm for cell in record["cells"] for arm in cell.get("arms", [])]
    return any(arm["kind"] == KERNELS and arm["status"] in (FAILED, WRONG) for arm in arms)


def _all_arms(job: KernelJob) -> Arms:
    inner = job.compiler()

    def arms(shape: Shape, device: torch.device) -> list[Arm]:
        own = kernel_arms(shape, inner, _kernels_missing(shape, device))
        return [*own, *torch_arms(shape, inner), *(peer_arms(shape, device, inner, PEERS) if job.peers else [])]

    return arms


def _kernels_missing(shape: Shape, device: torch.device) -> str:
    """What the generated kernels need and do not have; '' if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if shape.width > tiling.WIDEST:
        return f"rows of at most {tiling.WIDEST} are held"
    if device.type == "cuda" or (device.type == "cpu" and is_interpreted()):
        return ""
    return f"Triton runs on {device.type} in its interpreter only: set TRITON_INTERPRET=1"


def _is_chosen(arm: Arm, names: tuple[str, ...]) -> bool:
    return not names or any(name in arm.name for name in names)


def _check_names(job: KernelJob, cells: Sequence[tuple[Shape, str]], arms: Arms, device: torch.device) -> None:
    known = [arm.name for level in job.level for arm in arms(next(s for s, _ in cells if s.level == level), device)]
    for name in job.arms:
        if not any(name in one for one in known):
            raise MeasureError(f"no arm has {name!r} in its name: pass a part of {', '.join(dict.fromkeys(known))}")


@dataclass(frozen=True)
class _Cell:
    job: KernelJob
    shape: Shape
    training: bool
    device: torch.device
    clock: CpuClock | CudaClock
    copied: int

    def measure(self, arms: Sequence[Arm]) -> dict[str, Any]:
        """The record of this cell but for its shape."""
        start = time.monotonic()
        torch.compiler.reset()  # The limit of recompilations counts those of all cells.
        inputs = make_inputs(self.shape, self.device, self.training)
        wanted = reference(self.shape, inputs, self.training)
        results, calls = [], {}
        for arm in arms:
            result, call = self._gated(arm, inputs, wanted)
            results.append(result)
            if call is not None:
                calls[arm.name] = call
        calls[_COPY], moved = copy_call(self.copied, self.device)
        del wanted
        taken = time_in_turn(calls, self.job.rounds, self.clock)
        copy_seconds = taken.pop(_COPY).seconds.get("forward")
        if not copy_seconds:
            raise MeasureError(f"a copy of {moved // 2} bytes found no memory: pass fewer tokens")
        bandwidth = moved / statistics.median(copy_seconds)
        ideal = ideal_traffic(self.shape).parts(self.shape, self.training)
        for arm, result in zip(arms, results, strict=True):
            if arm.name in taken:
                result |= self._timed(arm, taken[arm.name], ideal, bandwidth)
        _compare(results, "step" if self.training else "forward")
        return {
            "ideal_bytes": ideal,
            "copy": {"bytes": moved, "seconds": copy_seconds, "bytes_per_second": bandwidth},
            "arms": results,
            "spent_seconds": time.monotonic() - start,
        }

    def _gated(self, arm: Arm, inputs: Inputs, wanted: Reference) -> tuple[dict[str, Any], Timed | None]:
        """The beginning of an arm's record, and what to time if it is right."""
        result: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "note": arm.note}
        if arm.unsupported:
            return result | {"status": UNSUPPORTED, "reason": arm.unsupported}, None
        if arm.same_as:
            return result | {"status": SAME, "reason": f"the same calls as {arm.same_as}"}, None
        reason = ""
        try:
            found = errors(wanted, self.shape, inputs, lambda: self._outputs(arm, inputs), self.training)
            call = self._call(arm, inputs, wanted.output_grads)
        except Exception as error:
            reason = first_line(error)
        if reason:
            self._free()
            return result | {"status": FAILED, "reason": reason}, None
        result["errors"] = found
        bound = TOLERANCES[self.shape.dtype]
        wrong = [f"{name} {value:.3g}" for name, value in found.items() if not value <= bound]
        if wrong:
            reason = f"largest relative error of {', '.join(wrong)}: more than {bound:g}"
            return result | {"status": WRONG, "reason": reason}, None
        return result | {"status": MEASURED}, call

    def _outputs(self, arm: Arm, inputs: Inputs) -> list[Tensor]:
        assert arm.call is not None
        with torch.set_grad_enabled(self.training):
            return arm.call(inputs, arm.prepare(inputs))

    def _call(self, arm: Arm, inputs: Inputs, output_grads: list[Tensor]) -> Timed:
        """One call of an arm, from what earlier blocks have made, and its backward into all that has a gradient."""
        assert arm.call is not None
        run = arm.call
        with torch.set_grad_enabled(self.training):
            state = [x.detach().requires_grad_(x.requires_grad) for x in arm.prepare(inputs)]

        def forward() -> list[Tensor]:
            with torch.set_grad_enabled(self.training):
                return run(inputs, state)

        leaves = [x for x in itertools.chain(*inputs, state) if x.requires_grad]
        further: list[Tensor] = []

        def backward(outputs: list[Tensor]) -> object:
            if not further:
                further.extend(torch.randn_like(x) for x in outputs[len(output_grads) :])
            pairs = zip(outputs, [*output_grads, *further], strict=True)
            made, grads = zip(*((x, grad) for x, grad in pairs if x.requires_grad), strict=True)
            return torch.autograd.grad(made, leaves, grads, allow_unused=True)

        return Timed(forward, backward if self.training else None)

    def _timed(self, arm: Arm, taken: Taken, ideal: dict[str, int], bandwidth: float) -> dict[str, Any]:
        if taken.error:
            return {"status": FAILED, "reason": f"while it was timed: {taken.error}"}
        moved = arm.traffic.parts(self.shape, self.training)
        medians = {part: statistics.median(seconds) for part, seconds in taken.seconds.items()}
        return {
            "bytes": moved,
            "seconds": taken.seconds,
            "median": medians,
            "fraction": {part: moved[part] / medians[part] / bandwidth for part in medians},
            "ideal_fraction": {part: ideal[part] / medians[part] / bandwidth for part in medians},
            "lead": taken.lead,
            "late": taken.late,
        }

    def _free(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _compare(results: Sequence[dict[str, Any]], part: str) -> None:
    """Give each arm of ours its speed over the fastest peer and over the fastest torch code, round by round."""
    measured = [result for result in results if result["status"] == MEASURED]
    for kind in (PEER, TORCH):
        others = [result for result in measured if result["kind"] == kind]
        if not others:
            continue
        fastest = min(others, key=lambda result: float(result["median"][part]))
        for result in measured:
            if result["kind"] == KERNELS:
                ratio = paired_ratio(result["seconds"][part], fastest["seconds"][part])
                told = {"median": ratio.value, "low": ratio.low, "high": ratio.high, "confidence": ratio.confidence}
                result.setdefault("speed_over", {})[kind] = {"name": fastest["name"], "part": part} | told
