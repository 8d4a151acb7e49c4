"""Measures one cell of the grid: its inputs, the gate for every arm, and those that passed in turn with a copy."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnres_compile.progress import each
from attnres_compile.report.comparison import MeasureError, paired_ratio

from .arms.arm import KERNELS, PEER, TORCH, Arm
from .gate import Reference, beyond, errors, reference, results
from .timing import CpuClock, CudaClock, Taken, Timed, copy_call, first_line, time_in_turn
from .traffic import ideal_traffic
from .work import Inputs, Shape, make_inputs

MEASURED, SAME, UNSUPPORTED, FAILED, WRONG = "measured", "same", "unsupported", "failed", "wrong"
_COPY = "copy"


def measured_cell(cell: Cell, arms: Sequence[Arm]) -> dict[str, Any]:
    """The record of a cell but for its shape, or why there is none: its inputs alone may be too large.

    Args:
        cell: to measure.
        arms: that do its work.
    """
    try:
        return cell.measure(arms)
    except (torch.OutOfMemoryError, MeasureError) as error:
        reason = first_line(error)
    _free_memory()
    return {"skipped": reason}


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Cell:
    """One cell: a shape, a direction, and how it is measured."""

    rounds: int
    shape: Shape
    training: bool
    device: torch.device
    clock: CpuClock | CudaClock
    copied: int
    """Bytes of the tensor that the copy copies."""

    def measure(self, arms: Sequence[Arm]) -> dict[str, Any]:
        """The record of this cell but for its shape."""
        start = time.monotonic()
        torch.compiler.reset()  # The limit of recompilations counts those of all cells.
        inputs = make_inputs(self.shape, self.device, self.training)
        wanted = reference(self.shape, inputs, self.training)
        results, calls = [], {}
        for arm in each(arms, "comparing an arm with the definition"):
            result, call = self._gated(arm, inputs, wanted)
            results.append(result)
            if call is not None:
                calls[arm.name] = call
        calls[_COPY], moved = copy_call(self.copied, self.device)
        del wanted
        taken = time_in_turn(calls, self.rounds, self.clock)
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
            outputs_of = functools.partial(self._outputs, arm, inputs)
            found = errors(wanted, results(wanted.output_grads, self.shape, inputs, outputs_of, self.training))
            call = self._call(arm, inputs, wanted.output_grads)
        except Exception as error:
            reason = first_line(error)
        if reason:
            _free_memory()
            return result | {"status": FAILED, "reason": reason}, None
        result["errors"] = found
        if reason := beyond(found, self.shape.dtype):
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
                told = {"name": fastest["name"], "part": part} | ratio.to_dict()
                result.setdefault("speed_over", {})[kind] = told
