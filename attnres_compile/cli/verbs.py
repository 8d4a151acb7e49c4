"""What each verb of the ``attnres`` command does; torch is imported when one runs, so --help is instant."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from attnres_compile.cli.command import FAILED, PASSED
from attnres_compile.cli.options import load_options, rewrite_options
from attnres_compile.cli.output import (
    check_writable,
    json_text,
    keep_record,
    read_record,
    record_kind,
    refuse_kernel_record,
    write_text,
)
from attnres_compile.progress import stage
from attnres_passes.ir.config import ConfigError

BENCH_SEQ = 512
VERIFICATION_SCHEMA = 1


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print what is rewritten, in the format that is asked for; the exit code says how much."""
    form = "json" if arguments.json else arguments.format
    if form not in ("text", "json") and (arguments.level or arguments.diff):
        raise ConfigError(
            f"--level and --diff are text, and --format is {form}: leave it out, or take --format json; a page of "
            "--format html holds the graphs of all levels and the difference."
        )
    check_writable(arguments.output)
    loaded = _load_of_any_size(arguments)
    import attnres_compile as ac

    # Nothing to rewrite is what this verb reports, with its exit code, and so no error.
    options = rewrite_options(arguments) | {"on_decline": "ignore"}
    explanation = ac.explain(loaded.model, loaded.args, loaded.kwargs, name=loaded.name, **options)
    expand: list[str] = arguments.expand or []
    asked = _asked(arguments, explanation, expand)
    renderers: dict[str, Callable[[], str]] = {
        "text": lambda: "\n\n".join([*([] if arguments.diff else [explanation.report(expand)]), *asked.values()]),
        "json": lambda: json_text(explanation.to_dict() | asked),
        "html": lambda: explanation.to_html(expand=expand),
        "svg": lambda: explanation.to_svg(expand),
        "dot": lambda: explanation.to_dot(expand),
    }
    write_text(renderers[form](), arguments.output)
    return int(explanation.inspection.verdict)


def _asked(arguments: argparse.Namespace, explanation: Any, expand: list[str]) -> dict[str, str]:
    """The texts beside the report, by their names in JSON."""
    asked = {}
    if arguments.diff:
        asked["diff"] = explanation.diff(expand) or explanation.inspection.headline
    if arguments.level == "scheduled":
        asked["schedule"] = explanation.schedule
    if arguments.level:
        asked["graph"] = explanation.text(arguments.level)
    return {name: text for name, text in asked.items() if text}


def run_verify(arguments: argparse.Namespace) -> int:
    """Run the checks of ``attnres_compile.verify`` and print them."""
    check_writable(arguments.output)
    loaded = _load(arguments)
    import attnres_compile as ac

    verification = ac.verify(loaded.model, loaded.args, loaded.kwargs, **rewrite_options(arguments))
    record = {"schema_version": VERIFICATION_SCHEMA} | verification.to_dict() if arguments.json else None
    write_text(str(verification) if record is None else json_text(record), arguments.output)
    return PASSED if verification.passed else FAILED


def run_bench_model(arguments: argparse.Namespace) -> int:
    """Measure one model; print the table and keep the record."""
    check_writable(arguments.json)
    from attnres_compile.measure.model import WORKLOADS, ModelJob, measure_model
    from attnres_compile.measure.model_table import model_table

    path: str | None = arguments.json
    options = rewrite_options(arguments)
    schedule = options.pop("schedule", None)
    if schedule is not None and arguments.schedules:
        raise ConfigError("--schedule and --schedules are both given: name all schedules in --schedules")
    named = dict(zip(("prefill", "training", "decode"), WORKLOADS, strict=True))
    named["forward"] = named["prefill"]
    job = ModelJob(
        model=arguments.model,
        load=load_options(arguments, default_seq=BENCH_SEQ),
        workloads=tuple(named[word] for word in arguments.workload or ()) or WORKLOADS,
        rounds=arguments.rounds,
        compile_rounds=arguments.compile_rounds if arguments.compile_time else 0,
        without_dropout=arguments.no_dropout,
        schedules=tuple(arguments.schedules or (schedule or "auto",)),
        options=options,
    )

    def keep(record: dict[str, Any]) -> None:
        keep_record(record, path)

    return _show_record(measure_model(job, arguments.command, keep), model_table, path)


def run_bench_analysis(arguments: argparse.Namespace) -> int:
    """Time the passes by depth; print the table and keep the record."""
    check_writable(arguments.json)
    from attnres_compile.measure.analysis import analysis_table, measure_analysis

    record = measure_analysis(arguments.layers, arguments.rounds, arguments.command)
    return _show_record(record, analysis_table, arguments.json)


def run_bench_show(arguments: argparse.Namespace) -> int:
    """Print the table of a kept record."""
    record = read_record(arguments.file)
    refuse_kernel_record(record, "show", arguments.file)
    from attnres_compile.measure import analysis
    from attnres_compile.measure.model_table import model_table

    is_analysis = record_kind(record) == analysis.KIND
    return _show_record(record, analysis.analysis_table if is_analysis else model_table, None)


def _show_record(record: dict[str, Any], table: Any, path: str | None) -> int:
    keep_record(record, path)
    write_text(table(record), None)
    return 0


def _load_of_any_size(arguments: argparse.Namespace) -> Any:
    """The model, without its weights where memory cannot hold them, which a line on stderr then says."""
    from attnres_compile.models.errors import TooLargeError
    from attnres_compile.models.source import load_model

    try:
        return _load(arguments)
    except TooLargeError as error:
        needed = str(error).partition(":")[0]
        print(f"attnres: inspected without weights, on the meta device: {needed}", file=sys.stderr)
    return load_model(arguments.model, dataclasses.replace(load_options(arguments), weightless=True))


def _load(arguments: argparse.Namespace) -> Any:
    options = load_options(arguments)
    from attnres_compile.models.source import load_model

    stage("making the model")
    return load_model(arguments.model, options)
