"""``attnres bench model``: the plain against the AttnRes compiled model, kept as JSON with raw samples.

Each workload and schedule is a cell of its own, with a plain and an AttnRes copy of the model that are compiled for it,
measured in turn, and dropped before the next cell. One pair is alive at a time: Dynamo compiles a forward only so often
before it leaves it to Python, which all copies share, and the models of four schedules may not fit a GPU together.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from attnres_compile.measure.compile_time import PREFILL, TRAINING, CompileJob, compile_samples, measure_compile_time
from attnres_compile.measure.decode import GRAPH_MODE, DecodeError, DecodeStep, check_decodable, decode_step
from attnres_compile.measure.device_cost import count_launches, model_bytes, peak_memory
from attnres_compile.measure.model_pair import (
    ATTNRES,
    PLAIN,
    ModelPair,
    compile_pair,
    model_call,
    prepared_pair,
    switch_dropout_off,
)
from attnres_compile.measure.timing import DEFAULT_ROUNDS, compare
from attnres_compile.models.example_inputs import first_line
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import LoadedModel, load_model
from attnres_compile.progress import each, stage, task
from attnres_compile.report.comparison import Comparison, MeasureError, paired_ratio
from attnres_compile.report.records import device_name, record_head
from attnres_kernels.errors import AttnResError
from attnres_passes.ir.config import CHOICES, AttnResConfig

SCHEMA_VERSION = 2
KIND = "bench model"
DECODE = "decode step"
WORKLOADS = (PREFILL, TRAINING, DECODE)

_WARMUP = 3
"""Calls of each before it is timed: a CUDA graph is recorded at the second and replayed from the third on."""
_IN_A_GRAPH = "a CUDA graph allocates in a pool of its own when it is recorded, and nothing when it is replayed"

Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ModelJob:
    """Which model to measure, at what, and how often."""

    model: str
    load: LoadOptions
    workloads: tuple[str, ...] = WORKLOADS
    rounds: int = DEFAULT_ROUNDS
    """Samples of each latency."""
    compile_rounds: int = 0
    """Processes of each side for the time to compile, 0 for none."""
    without_dropout: bool = False
    """Whether every dropout is set to zero, on both sides."""
    schedules: tuple[str, ...] = ("auto",)
    """Each is paired with the plain model."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the rewrite, without its schedule."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise MeasureError(f"rounds is {self.rounds}: pass at least 1")
        if self.compile_rounds < 0:
            raise MeasureError(f"compile_rounds is {self.compile_rounds}: pass at least 0")
        _check_names("workload", self.workloads, WORKLOADS)
        _check_names("schedule", self.schedules, CHOICES["schedule"])
        if "schedule" in self.options:
            raise MeasureError("the schedule is among the options: name it in schedules")

    def config(self, schedule: str) -> AttnResConfig:
        """The options with one schedule. Raises ConfigError."""
        return AttnResConfig.from_options(self.options | {"schedule": schedule})


def _check_names(kind: str, names: tuple[str, ...], known: Sequence[str]) -> None:
    if not names:
        raise MeasureError(f"no {kind} is named: pass at least one of {', '.join(known)}")
    for number, name in enumerate(names):
        if name not in known:
            raise MeasureError(f"{kind} {name!r} is not known: pass one of {', '.join(known)}")
        if name in names[:number]:
            raise MeasureError(f"{kind} {name!r} is named twice: pass each once")


def measure_model(job: ModelJob, command: Sequence[str] = (), keep: Keep | None = None) -> dict[str, Any]:
    """Measure ``job`` and return the record, plain data for JSON.

    Args:
        job: what is measured.
        command: the words of the command line, for the record.
        keep: is called with the record after every cell, so that an end before its time loses one cell.

    Raises:
        MeasureError: the model cannot be timed.
        ModelSourceError: it cannot be loaded; and what ``attnres_compile.prepare`` raises.
    """
    configs = {schedule: job.config(schedule) for schedule in job.schedules}
    device = job.load.torch_device()
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    stage("making the model")
    loaded = load_model(job.model, job.load)
    if job.without_dropout:
        switch_dropout_off(loaded.model)
    cells: list[dict[str, Any]] = []
    record = {
        **record_head(KIND, SCHEMA_VERSION, command, device),
        "model": {
            "name": loaded.name,
            "source": loaded.source,
            "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
            "bytes": model_bytes(loaded.model),
        },
        "job": dataclasses.asdict(job),
        "inputs": {name: list(value.shape) for name, value in loaded.kwargs.items() if hasattr(value, "shape")},
        "plan": [],
        "cells": cells,
    }
    planned = [(workload, schedule) for workload in job.workloads for schedule in configs]
    for workload, schedule in each(planned, "cell"):
        with task(f"{workload}, schedule {schedule}"):
            cell = _cell(job, loaded, workload, configs[schedule], record)
        cells.append({"workload": workload, "schedule": schedule} | cell)
        # Outside of the cell's frames, which would keep its models.
        _forget(device)
        if keep is not None:
            keep(record)
    if job.compile_rounds:
        record["compile"] = [
            {"workload": workload, "schedule": schedule} | _compile(job, workload, schedule)
            for workload in job.workloads
            if workload != DECODE
            for schedule in job.schedules
        ]
    return record


def _cell(
    job: ModelJob, loaded: LoadedModel, workload: str, config: AttnResConfig, record: dict[str, Any]
) -> dict[str, Any]:
    try:
        if workload == DECODE:
            check_decodable(loaded.model, loaded.args, loaded.kwargs)
        pair = prepared_pair(loaded.model, loaded.args, loaded.kwargs, config)
        record["plan"] = [
            {"stream": one.name, "writes": len(one.writes), "reads": len(one.reads), "blocks": one.num_blocks}
            for one in pair.plan.streams
        ]
        return _decode(job, loaded, pair) if workload == DECODE else _forward(job, loaded, pair, workload)
    except DecodeError as error:
        return {"missing": error.message}
    except torch.OutOfMemoryError as error:
        return {"missing": f"out of memory: {first_line(error)}"}


def _forward(job: ModelJob, loaded: LoadedModel, pair: ModelPair, workload: str) -> dict[str, Any]:
    """Prefill or training: calls with all tokens."""
    is_training = workload == TRAINING
    kwargs = loaded.training_kwargs if is_training else loaded.kwargs
    device = job.load.torch_device()
    compile_pair(pair)
    models = {PLAIN: pair.plain, ATTNRES: pair.attnres}
    calls = {name: model_call(model, loaded.args, kwargs, is_training) for name, model in models.items()}
    timed = _compare(job, calls)
    memory = {name: peak_memory(call, models[name], 0, device) for name, call in calls.items()}
    launches = {name: count_launches(call, device) for name, call in calls.items()}
    return {"latency": timed.to_dict(), "memory": _both(memory, "peak"), "launches": _both(launches, "kernels")}


def _decode(job: ModelJob, loaded: LoadedModel, pair: ModelPair) -> dict[str, Any]:
    """One new token against a filled cache; under CUDA graphs where Inductor compiles for a GPU."""
    device = job.load.torch_device()
    graphs = device.type == "cuda" and pair.plan.config.inner == "inductor"
    models = {PLAIN: pair.plain, ATTNRES: pair.attnres}
    stage("filling the caches")
    # Both are filled before either is compiled: filling ends with dropping what is compiled.
    steps = {name: decode_step(model, loaded.kwargs["input_ids"], graphs) for name, model in models.items()}
    compile_pair(pair, GRAPH_MODE if graphs else None)
    try:
        timed = _compare(job, steps)
    except AttnResError as error:
        raise DecodeError(f"the rewritten model does not decode: {first_line(error)}") from error
    if graphs:
        memory: dict[str, Any] = {"missing": _IN_A_GRAPH}
    else:
        memory = _both({name: _step_memory(step, device) for name, step in steps.items()}, "peak")
    launches = {name: count_launches(step.run, device, before=step.set_back) for name, step in steps.items()}
    return {
        "cuda_graphs": graphs,
        "cache": {"tokens": loaded.kwargs["input_ids"].shape[-1] - 1, "bytes": steps[PLAIN].cache_bytes()},
        "latency": timed.to_dict(),
        "memory": memory,
        "launches": _both(launches, "kernels"),
    }


def _step_memory(step: DecodeStep, device: torch.device) -> dict[str, Any]:
    return peak_memory(step, step.model, step.cache_bytes(), device)


def _compare(job: ModelJob, calls: dict[str, Any]) -> Comparison:
    return compare(
        calls[PLAIN],
        calls[ATTNRES],
        rounds=job.rounds,
        warmup=_WARMUP,
        device=job.load.torch_device(),
        names=(PLAIN, ATTNRES),
    )


def _both(of_sides: dict[str, dict[str, Any]], counted: str) -> dict[str, Any]:
    """The numbers of both sides and the ratio of what is counted, or why one is missing."""
    for name, numbers in of_sides.items():
        if "missing" in numbers:
            others = all(other == numbers for other in of_sides.values())
            return numbers if others else {"missing": f"{name}: {numbers['missing']}"}
    plain, attnres = of_sides[PLAIN][counted], of_sides[ATTNRES][counted]
    return of_sides | {"ratio": attnres / plain}


def _forget(device: torch.device) -> None:
    """Drop compiled code, with its CUDA graphs, and what only it kept alive."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _compile(job: ModelJob, workload: str, schedule: str) -> dict[str, Any]:
    options = job.options | {"schedule": schedule}
    times = measure_compile_time(
        CompileJob(job.model, job.load, workload, options, job.without_dropout), job.compile_rounds
    )
    plain, attnres = compile_samples(times)
    ratio = paired_ratio(plain.seconds, attnres.seconds)
    device = device_name(job.load.torch_device())
    timed = Comparison(plain, attnres, ratio, device, torch.get_num_threads(), calls=1)
    return timed.to_dict() | {"prepare_seconds": [one.prepare for one in times[ATTNRES]]}
