"""``attnres report``: the overhead table of a model, or its trade-off over the number of blocks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnres_compile.cli.options import report_load_options, rewrite_options
from attnres_compile.cli.output import check_writable, json_text, write_bytes, write_text
from attnres_compile.progress import stage
from attnres_passes.ir.config import ConfigError

_PICTURES = ("svg", "png")
_SUFFIXES = {"md": "md", "csv": "csv", "json": "json", "html": "html", "htm": "html", "svg": "svg", "png": "png"}


def run_report(arguments: argparse.Namespace) -> int:
    """Print the table, or the sweep, in the format that is asked for."""
    form = _format(arguments)
    pipeline = _pipeline(arguments)
    parallel = _parallel(arguments)
    check_writable(arguments.output)
    options = report_load_options(arguments)
    from attnres_compile.models.source import load_model

    stage("making the model")
    loaded = load_model(arguments.model, options)
    given = rewrite_options(arguments)
    published = {} if {"num_blocks", "block_size"} & given.keys() else dict(loaded.rewrite)
    text = ", ".join(f"{name}={value}" for name, value in published.items())
    note = f"{text} as this model was published with; --blocks or --block-size take another" if published else ""
    common: dict[str, Any] = {"lengths": _lengths(loaded), "name": loaded.name, **published, **given}
    if arguments.sweep:
        shown = _explained(loaded, lambda: _sweep(loaded, form, common))
    else:
        measured = {"measure": arguments.measure, "training_kwargs": loaded.training_kwargs, "pipeline": pipeline}
        measured["parallel"] = parallel
        rounds = {} if arguments.rounds is None else {"rounds": arguments.rounds}
        keywords = common | measured | rounds | {"note": note}
        shown = _explained(loaded, lambda: _report(loaded, form, arguments.details, keywords))
    if isinstance(shown, bytes):
        write_bytes(shown, arguments.output)
    else:
        write_text(shown, arguments.output)
    return 0


def _format(arguments: argparse.Namespace) -> str:
    """What is asked for, or what the name of the output says. Raises ConfigError for what cannot be."""
    suffix = Path(arguments.output or "").suffix.lstrip(".").lower()
    form: str = arguments.format or _SUFFIXES.get(suffix, "table")
    if form in _PICTURES and not arguments.sweep:
        raise ConfigError(f"{form} is a plot, which only --sweep blocks has: add it, or take another --format")
    if form == "png" and arguments.output is None:
        raise ConfigError("png is no text: name a file with -o")
    if arguments.sweep and arguments.measure:
        raise ConfigError("--sweep counts and does not measure: leave --measure out, or measure one --blocks at a time")
    return form


def _pipeline(arguments: argparse.Namespace) -> tuple[int, int] | None:
    if arguments.stages is None and arguments.virtual is not None:
        raise ConfigError("--virtual is of the ranks of a pipeline: give their number with --stages")
    return None if arguments.stages is None else (arguments.stages, arguments.virtual or 1)


def _parallel(arguments: argparse.Namespace) -> Any:
    """What is checkpointed and sharded. Raises ParallelError, and ConfigError for what cannot be together."""
    from attnres_compile.report.parallel import Parallel

    parallel = Parallel(arguments.checkpoint, arguments.fsdp, arguments.tp)
    if not parallel.is_plain and arguments.sweep:
        raise ConfigError("--sweep counts one rank without checkpoints: leave --checkpoint, --fsdp and --tp out")
    if not parallel.is_plain and arguments.measure:
        raise ConfigError(
            "--measure times one process without checkpoints: leave it out, or --checkpoint, --fsdp and --tp"
        )
    return parallel


def _lengths(loaded: Any) -> tuple[int, int] | None:
    return None if loaded.asked_seq is None else (int(loaded.kwargs["input_ids"].shape[1]), loaded.asked_seq)


def _explained(loaded: Any, make: Callable[[], str | bytes]) -> str | bytes:
    """What ``make()`` gives; if a model does not run on guessed inputs, the error says that they were guessed."""
    from attnres_compile.measure.timing import garbage_collection_paused
    from attnres_compile.model.errors import CaptureError
    from attnres_compile.models.errors import InputGuessError
    from attnres_compile.models.example_inputs import HOW_TO_GIVE_INPUTS, first_line

    try:
        # A collector that walks the objects of a large graph over and over takes a tenth of the time, and frees little.
        with garbage_collection_paused():
            return make()
    except CaptureError as error:
        if not loaded.guessed:
            raise
        raise InputGuessError(
            f"{loaded.name} does not run on the guessed inputs {', '.join(loaded.kwargs)} ({first_line(error)}); "
            f"{HOW_TO_GIVE_INPUTS}"
        ) from error


def _report(loaded: Any, form: str, details: bool, keywords: dict[str, Any]) -> str:
    from attnres_compile.measure.overhead import overhead
    from attnres_compile.report.pages.html import report_page

    report = overhead(loaded.model, loaded.args, loaded.kwargs, **keywords)
    renderers: dict[str, Callable[[], str]] = {
        "table": lambda: report.to_text(details),
        "md": lambda: report.to_markdown(details),
        "csv": report.to_csv,
        "json": lambda: json_text(report.to_dict()),
        "html": lambda: report_page(report),
    }
    return renderers[form]()


def _sweep(loaded: Any, form: str, keywords: dict[str, Any]) -> str | bytes:
    from attnres_compile.report.block_sweep import sweep_blocks
    from attnres_compile.report.pages.html import sweep_page
    from attnres_compile.report.pages.sweep_plot import sweep_png, sweep_svg

    found = sweep_blocks(loaded.model, loaded.args, loaded.kwargs, **keywords)
    renderers: dict[str, Callable[[], str | bytes]] = {
        "table": lambda: str(found),
        "md": found.to_markdown,
        "csv": found.to_csv,
        "json": lambda: json_text(found.to_dict()),
        "html": lambda: sweep_page(found),
        "svg": lambda: sweep_svg(found),
        "png": lambda: sweep_png(found),
    }
    return renderers[form]()
