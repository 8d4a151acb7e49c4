"""What ``attnres sweep`` does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from attnres_compile.cli.command import PASSED
from attnres_compile.cli.output import check_writable, write_text
from attnres_passes.ir.config import ConfigError

FOUND_FAULTS = 2
"""Exit code of a sweep in which a model raised an error that is none of ours, or was not verified."""

_GIGABYTE = 1 << 30
_OUTCOMES = ("rewritten", "partial", "declined", "refused", "not made", "limit", "wrong", "fault")
_LIBRARIES = ("transformers", "timm")


def add_sweep_options(parser: Any) -> None:
    """What is swept, with which limits, and where it is kept."""
    parser.add_argument("--library", choices=_LIBRARIES, default=_LIBRARIES[0], help="(default transformers)")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="models whose names match, as in a shell: 'qwen*,llama'"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument(
        "--out", metavar="FILE", help="keep a line of JSON for every model; a sweep that was ended goes on where it was"
    )
    parser.add_argument("--limit-seconds", type=float, default=300.0, help="of each model (default 300)")
    parser.add_argument("--limit-gigabytes", type=float, default=16.0, help="address space of each (default 16)")
    parser.add_argument(
        "--again", action="append", choices=_OUTCOMES, default=[], help="sweep models with this outcome again"
    )
    parser.add_argument("--page", metavar="FILE", help="sweep nothing: the page of such a file, as Markdown")


def run_sweep(arguments: argparse.Namespace) -> int:
    """Sweep, or print the page of an earlier sweep; the exit code says whether a fault was found."""
    if arguments.page is not None:
        from attnres_compile.sweep.agreement.page import page

        write_text(page(Path(arguments.page)), arguments.output)
        return PASSED
    if arguments.jobs < 1 or arguments.limit_seconds <= 0 or arguments.limit_gigabytes <= 0:
        raise ConfigError("--jobs, --limit-seconds and --limit-gigabytes have to be positive")
    check_writable(arguments.out)
    from attnres_compile.sweep.agreement.page import summary
    from attnres_compile.sweep.names import names
    from attnres_compile.sweep.record import FAULTS, Outcome, read_records
    from attnres_compile.sweep.run import Limits, left_to_do, sweep

    chosen = names(arguments.library, arguments.only)
    if not chosen:
        raise ConfigError(f"no model of {arguments.library} is named {arguments.only!r}: pass another --only")
    out = None if arguments.out is None else Path(arguments.out)
    again = {Outcome(one) for one in arguments.again}
    todo = chosen if out is None else left_to_do(out, arguments.library, chosen, again)
    limits = Limits(arguments.limit_seconds, int(arguments.limit_gigabytes * _GIGABYTE))
    records = []
    for record in sweep(arguments.library, todo, arguments.jobs, limits):
        records.append(record)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(record.to_line() + "\n")
    if out is not None and out.exists():
        records = [one for one in read_records(out) if one.library == arguments.library and one.name in set(chosen)]
    write_text(summary(records), arguments.output)
    return FOUND_FAULTS if any(record.outcome in FAULTS for record in records) else PASSED
