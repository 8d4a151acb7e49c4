"""``attnres bench model``: the plain against the AttnRes compiled model, kept as JSON with raw samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate

from attnres_compile.bench import arms as model_arms
from attnres_compile.bench.compile_time import FORWARD, TRAINING, CompileJob, compile_samples, measure_compile_time
from attnres_compile.bench.environment import describe_environment, device_name
from attnres_compile.bench.measure import DEFAULT_ROUNDS, Comparison, MeasureError, compare, paired_ratio
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import LoadedModel, load_model
from attnres_passes.config import AttnResConfig

SCHEMA_VERSION = 1
KIND = "bench model"
WORKLOADS = (FORWARD, TRAINING)


@dataclass(frozen=True)
class BenchJob:
    """What to measure. rounds: of latency; compile_rounds: processes per arm for the time to compile, 0 for
    none.

    options: of the rewrite. without_dropout: set every dropout of the model to zero, on both sides.
    """

    model: str
    load: LoadOptions
    workloads: tuple[str, ...] = WORKLOADS
    rounds: int = DEFAULT_ROUNDS
    compile_rounds: int = 0
    without_dropout: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise MeasureError(f"rounds is {self.rounds}: pass at least 1")
        if self.compile_rounds < 0:
            raise MeasureError(f"compile_rounds is {self.compile_rounds}: pass at least 0")
        unknown = set(self.workloads) - set(WORKLOADS)
        if unknown:
            raise MeasureError(f"workload {min(unknown)!r} is not known: pass one of {', '.join(WORKLOADS)}")


def bench_model(job: BenchJob, command: Sequence[str] = ()) -> dict[str, Any]:
    """Measure ``job`` and return the record, plain data for JSON.

    Raises MeasureError, ModelSourceError, and what ``attnres_compile.prepare`` raises.
    """
    config = AttnResConfig.from_options(job.options)
    loaded = load_model(job.model, job.load)
    if job.without_dropout:
        model_arms.switch_dropout_off(loaded.model)
    arms = model_arms.compiled_arms(loaded.model, loaded.args, loaded.kwargs, config)
    measurements = {workload: _latency(job, loaded, arms, workload).to_dict() for workload in job.workloads}
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "command": " ".join(command),
        "environment": describe_environment(job.load.torch_device()),
        "model": {"name": loaded.name, "source": loaded.source, "parameters": _count(loaded.model)},
        "job": dataclasses.asdict(job),
        "inputs": {name: list(value.shape) for name, value in loaded.kwargs.items() if hasattr(value, "shape")},
        "plan": [
            {"stream": one.name, "writes": len(one.writes), "reads": len(one.reads), "blocks": one.num_blocks}
            for one in arms.plan.streams
        ],
        "latency": measurements,
    }
    del arms
    if job.compile_rounds:
        record["compile"] = {workload: _compile(job, workload) for workload in job.workloads}
    return record


def bench_table(record: dict[str, Any]) -> str:
    """The table of a record of ``bench_model``, with the model, device and versions above it.

    Raises MeasureError if ``record`` is of another kind or version.
    """
    if record.get("kind") != KIND or record.get("schema_version") != SCHEMA_VERSION:
        raise MeasureError(f"this is no record of `attnres {KIND}` with schema_version {SCHEMA_VERSION}: measure again")
    rows = [_row(f"{name} [ms]", Comparison.from_dict(data), 1000) for name, data in record["latency"].items()]
    for name, data in record.get("compile", {}).items():
        rows.append(_row(f"time to compile, {name} [s]", Comparison.from_dict(data), 1))
        prepare = sorted(data["prepare_seconds"])
        rows.append((f"prepare, {name} [s]", "n/a", f"{prepare[len(prepare) // 2]:.4g}", "n/a", len(prepare)))
    environment = record["environment"]
    shapes = ", ".join(f"{name} {shape}" for name, shape in record["inputs"].items())
    heading = (
        f"{record['model']['name']}: {record['model']['parameters']:,} parameters, {shapes}, "
        f"{record['job']['load']['dtype']}\n"
        f"{environment['device']}, {environment['threads']} threads, "
        f"torch {environment['versions']['torch']}, {environment['date']}"
    )
    headers = ("median (p20 to p80)", "plain", "attnres", "attnres / plain [95 % interval]", "rounds")
    return f"{heading}\n{tabulate(rows, headers, disable_numparse=True)}"


def _latency(job: BenchJob, loaded: LoadedModel, arms: model_arms.Arms, workload: str) -> Comparison:
    build = model_arms.training_call if workload == TRAINING else model_arms.forward_call
    kwargs = loaded.training_kwargs if workload == TRAINING else loaded.kwargs
    return compare(
        build(arms.plain, loaded.args, kwargs),
        build(arms.attnres, loaded.args, kwargs),
        rounds=job.rounds,
        device=job.load.torch_device(),
        names=(model_arms.PLAIN, model_arms.ATTNRES),
    )


def _compile(job: BenchJob, workload: str) -> dict[str, Any]:
    times = measure_compile_time(
        CompileJob(job.model, job.load, workload, job.options, job.without_dropout), job.compile_rounds
    )
    plain, attnres = compile_samples(times)
    ratio = paired_ratio(plain.seconds, attnres.seconds)
    device = device_name(job.load.torch_device())
    timed = Comparison(plain, attnres, ratio, device, torch.get_num_threads(), calls=1)
    return timed.to_dict() | {"prepare_seconds": [one.prepare for one in times[model_arms.ATTNRES]]}


def _row(metric: str, timed: Comparison, scale: float) -> tuple[str, str, str, str, int]:
    plain, attnres = (
        f"{arm.median * scale:.4g} ({arm.p20 * scale:.4g} to {arm.p80 * scale:.4g})"
        for arm in (timed.baseline, timed.candidate)
    )
    ratio = str(timed.ratio)
    if timed.ratio.confidence < 0.95:
        ratio += f" at {100 * timed.ratio.confidence:.0f} %"
    return metric, plain, attnres, ratio, len(timed.baseline.seconds)


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
