"""Time to compile: every sample is a fresh process with empty compiler caches.

parent: measure_compile_time(job)           child: ``python -m attnres_compile.measure.compile_time``
  writes job.json, starts the child   -->     loads the model, warms the compiler up, prepares,
  reads times.json                    <--     calls the compiled model, and calls it again
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnres_compile.models.load_options import LoadOptions
from attnres_compile.progress import each
from attnres_compile.report.comparison import MeasureError, Samples

PREFILL, TRAINING = "prefill", "training step"


@dataclass(frozen=True)
class CompileJob:
    """What one child process compiles: MODEL as on the command line, for PREFILL or TRAINING."""

    model: str
    load: LoadOptions
    workload: str
    options: dict[str, Any]
    """Options of the rewrite, as plain data."""
    without_dropout: bool = False


@dataclass(frozen=True)
class CompileTimes:
    """One child's times in seconds."""

    compile: float
    """Of the first call less a later one, with the compiler imported and its C++ probes done."""
    prepare: float
    """Of ``attnres_compile.prepare``; 0 for the plain model, which has no such step."""


def measure_compile_time(job: CompileJob, rounds: int) -> dict[str, tuple[CompileTimes, ...]]:
    """Times of the plain and the AttnRes model, taken in turn.

    Args:
        job: what is compiled.
        rounds: processes of each.

    Returns:
        ``{"plain": .., "attnres": ..}``.

    Raises:
        MeasureError: ``rounds`` is below 1, or a process fails.
    """
    if rounds < 1:
        raise MeasureError(f"rounds is {rounds}: pass at least 1")
    taken: dict[str, list[CompileTimes]] = {"plain": [], "attnres": []}
    turns = [("plain", "attnres") if number % 2 == 0 else ("attnres", "plain") for number in range(rounds)]
    sides = [side for turn in turns for side in turn]
    for side in each(sides, f"compiling {job.workload} in fresh processes", is_timed=True):
        taken[side].append(_in_fresh_process(job, side))
    return {side: tuple(times) for side, times in taken.items()}


def compile_samples(times: dict[str, tuple[CompileTimes, ...]]) -> tuple[Samples, Samples]:
    """The compile seconds of both sides, without the time of ``prepare``."""
    plain, attnres = (Samples(side, tuple(one.compile for one in times[side])) for side in ("plain", "attnres"))
    return plain, attnres


def _in_fresh_process(job: CompileJob, side: str) -> CompileTimes:
    with tempfile.TemporaryDirectory(prefix="attnres-compile-time-") as directory:
        job_file, times_file = Path(directory, "job.json"), Path(directory, "times.json")
        job_file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        environment = os.environ | {
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(Path(directory, "inductor")),
            "TRITON_CACHE_DIR": str(Path(directory, "triton")),
        }
        done = subprocess.run(
            [sys.executable, "-m", "attnres_compile.measure.compile_time", side, str(job_file), str(times_file)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = _failure(times_file) or (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MeasureError(
                f"the process that compiled the {side} model failed ({reason}): run the same model with "
                "`attnres verify --traceback` to see the error in full"
            )
        return CompileTimes(**json.loads(times_file.read_text(encoding="utf-8")))


def _failure(times_file: Path) -> str | None:
    """The error that the child left in the place of its times, if it came so far."""
    if not times_file.exists():
        return None
    error: str | None = json.loads(times_file.read_text(encoding="utf-8")).get("error")
    return error


def _child(side: str, job_file: Path, times_file: Path) -> None:
    values = json.loads(job_file.read_text(encoding="utf-8"))
    job = CompileJob(**values | {"load": LoadOptions(**values["load"])})
    try:
        record = dataclasses.asdict(_time_side(job, side))
    except Exception as error:
        # Dynamo ends its messages with advice; the parent can show one line and wants the error itself.
        inner = getattr(error, "inner_exception", None) or error
        record = {"error": f"{type(inner).__name__}: {' '.join(str(inner).split())}"}
        times_file.write_text(json.dumps(record), encoding="utf-8")
        raise
    times_file.write_text(json.dumps(record), encoding="utf-8")


def _time_side(job: CompileJob, side: str) -> CompileTimes:
    import torch

    import attnres_compile as ac
    from attnres_compile.measure import model_pair
    from attnres_compile.models.source import load_model

    loaded = load_model(job.model, job.load)
    model = loaded.model
    if job.without_dropout:
        model_pair.switch_dropout_off(model)
    inner = job.options.get("inner", "inductor")
    # The first compilation of a process imports the compiler and probes the C++ toolchain.
    probe = torch.ones(8, device=next(model.parameters()).device, requires_grad=True)
    torch.compile(lambda x: (x * 2).sum(), backend=inner)(probe).backward()
    prepare_seconds = 0.0
    if side == "attnres":
        prepare_seconds = _seconds(lambda: ac.prepare(model, loaded.args, loaded.kwargs, **job.options))
        model.compile(backend="attnres")
    else:
        model.compile(backend=inner)
    is_training = job.workload == TRAINING
    kwargs = loaded.training_kwargs if is_training else loaded.kwargs
    call = model_pair.model_call(model, loaded.args, kwargs, is_training)
    first = _seconds(call)
    later = min(_seconds(call) for _ in range(3))
    return CompileTimes(compile=first - later, prepare=prepare_seconds)


def _seconds(call: Callable[[], object]) -> float:
    import torch

    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
