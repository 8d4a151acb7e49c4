"""What each verb of the ``attnres`` command does; torch is imported when one runs, so --help is instant."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnres_compile.cli.options import load_options, rewrite_options
from attnres_compile.cli.output import OutputError, check_writable, json_text, write_text

ALL_REWRITTEN, PARTLY_REWRITTEN, NOTHING_REWRITTEN = 0, 2, 3
PASSED, FAILED = 0, 1
BENCH_SEQ = 512
VERIFICATION_SCHEMA = 1


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print the plan, and the graph of one level; the exit code says how much is rewritten."""
    check_writable(arguments.output)
    loaded = _load(arguments)
    import attnres_compile as ac

    # Nothing to rewrite is what this verb reports, with its exit code, and so no error.
    options = rewrite_options(arguments) | {"on_decline": "ignore"}
    explanation = ac.explain(loaded.model, loaded.args, loaded.kwargs, **options)
    graph = explanation.text(arguments.level) if arguments.level else None
    code = inspect_exit_code(explanation.plan)
    if arguments.json:
        record = explanation.to_dict() | {"model": loaded.name, "exit_code": code}
        write_text(json_text(record | ({"graph": graph} if graph else {})), arguments.output)
    else:
        write_text("\n\n".join(filter(None, (str(explanation.plan), graph))), arguments.output)
    return code


def inspect_exit_code(plan: Any) -> int:
    """0 if all streams are rewritten, 2 if some are, 3 if none; one left out by --stream is no miss."""
    if not plan.streams:
        return NOTHING_REWRITTEN
    missed = [decline for decline in plan.declined if str(decline.reason) != "not_selected"]
    return PARTLY_REWRITTEN if missed else ALL_REWRITTEN


def run_verify(arguments: argparse.Namespace) -> int:
    """Run the checks of ``attnres_compile.verify`` and print them."""
    check_writable(arguments.output)
    loaded = _load(arguments)
    import attnres_compile as ac

    verification = ac.verify(loaded.model, loaded.args, loaded.kwargs, **rewrite_options(arguments))
    record = {"schema_version": VERIFICATION_SCHEMA} | verification.to_dict() if arguments.json else None
    write_text(str(verification) if record is None else json_text(record), arguments.output)
    return PASSED if verification.passed else FAILED


def run_report(arguments: argparse.Namespace) -> int:
    """Print the overhead table."""
    check_writable(arguments.output)
    loaded = _load(arguments)
    from attnres_compile.report.overhead import overhead

    rounds = {} if arguments.rounds is None else {"rounds": arguments.rounds}
    report = overhead(
        loaded.model,
        loaded.args,
        loaded.kwargs,
        measure=arguments.measure,
        training_kwargs=loaded.training_kwargs,
        name=loaded.name,
        **rounds,
        **rewrite_options(arguments),
    )
    renderers: dict[str, Callable[[], str]] = {
        "table": lambda: f"{report.model}\n{report}",
        "md": report.to_markdown,
        "csv": report.to_csv,
        "json": lambda: json_text(report.to_dict()),
    }
    write_text(renderers[arguments.format](), arguments.output)
    return 0


def run_bench_model(arguments: argparse.Namespace) -> int:
    """Measure one model; print the table and keep the record."""
    check_writable(arguments.json)
    from attnres_compile.bench.model import WORKLOADS, BenchJob, bench_model, bench_table

    forward, training = WORKLOADS
    workloads = {"forward": (forward,), "training": (training,), None: WORKLOADS}[arguments.workload]
    job = BenchJob(
        model=arguments.model,
        load=load_options(arguments, default_seq=BENCH_SEQ),
        workloads=workloads,
        rounds=arguments.rounds,
        compile_rounds=arguments.compile_rounds if arguments.compile_time else 0,
        without_dropout=arguments.no_dropout,
        options=rewrite_options(arguments),
    )
    return _show_record(bench_model(job, arguments.command), bench_table, arguments.json)


def run_bench_analysis(arguments: argparse.Namespace) -> int:
    """Time the passes by depth; print the table and keep the record."""
    check_writable(arguments.json)
    from attnres_compile.bench.analysis import analysis_table, bench_analysis

    record = bench_analysis(arguments.layers, arguments.rounds, arguments.command)
    return _show_record(record, analysis_table, arguments.json)


def run_bench_show(arguments: argparse.Namespace) -> int:
    """Print the table of a kept record."""
    from attnres_compile.bench import analysis as bench_analysis
    from attnres_compile.bench import model as bench

    try:
        record = json.loads(Path(arguments.file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{arguments.file} is not a readable record ({error}): pass a file that --json wrote"
        ) from error
    is_analysis = isinstance(record, dict) and record.get("kind") == bench_analysis.KIND
    return _show_record(record, bench_analysis.analysis_table if is_analysis else bench.bench_table, None)


def _show_record(record: dict[str, Any], table: Any, path: str | None) -> int:
    if path is not None:
        write_text(json_text(record), path)
    write_text(table(record), None)
    return 0


def _load(arguments: argparse.Namespace) -> Any:
    options = load_options(arguments)
    from attnres_compile.models.source import load_model

    return load_model(arguments.model, options)
