"""The command line of the benchmarks; torch is imported when a verb runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnres_compile.cli.command import FAILED, PASSED, CommandParser, add_output, add_verb, run_command
from attnres_compile.cli.output import (
    KERNEL_KINDS,
    OutputError,
    check_writable,
    json_text,
    keep_record,
    read_record,
    record_kind,
    write_bytes,
    write_text,
)
from attnres_passes.ir.config import CHOICES

NAME = "python -m kernels.benchmarks"
KERNELS, OFFLINE, STATIC = KERNEL_KINDS

# The grid that the project's goals are set on; 6 reads a block as in Kimi Linear 48B.
_GRID = (
    ("--tokens", [8192, 32768], "T: rows of the stream"),
    ("--width", [2048, 4096, 7168], "d: of the stream"),
    ("--sources", [2, 4, 8], "n: completed blocks"),
    ("--reads", [6], "S: of a block"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 an error or a kernel of ours that fails."""
    return run_command(build_parser(), sys.argv[1:] if argv is None else argv, NAME)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = CommandParser(prog=NAME, description="Benchmarks of the generated kernels.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="{peers,offline,static,goals,show,plot}")
    _add_peers(verbs)
    _add_offline(verbs)
    _add_static(verbs)
    goals = add_verb(verbs, "goals", _run_goals, "how far each of the project's goals on a GPU is")
    goals.add_argument("files", metavar="FILE", nargs="+", help="a record of kernels or of `attnres bench model`")
    goals.add_argument("--format", choices=("table", "md"), default="table", help="of what is printed")
    add_output(goals)
    show = add_verb(verbs, "show", _run_show, "print the table of a kept record")
    show.add_argument("file", metavar="FILE", help="a record that peers --json, offline -o or static -o wrote")
    plot = add_verb(verbs, "plot", _run_plot, "draw a kept record of peers, with the project's goals")
    plot.add_argument("file", metavar="FILE", help="a record that peers --json wrote")
    ending = "the picture; its ending chooses the format (png, svg)"
    plot.add_argument("-o", "--output", metavar="PICTURE", required=True, help=ending)
    return parser


def _add_peers(verbs: Any) -> None:
    text = "reads and blocks of reads: generated kernels, torch code and other people's kernels, in turn"
    parser = add_verb(verbs, "peers", _run_peers, text)
    grid = parser.add_argument_group("grid: every combination is measured")
    grid.add_argument("--level", choices=("op", "block"), help="one read, or all reads of a block (default both)")
    grid.add_argument("--direction", choices=("forward", "training"), help="training: with the backward (default both)")
    for name, values, text in _GRID:
        default = " ".join(map(str, values))
        grid.add_argument(name, type=int, nargs="+", default=values, help=f"{text} (default {default})")
    dtypes = ("bfloat16", "float16", "float32")
    grid.add_argument("--dtype", nargs="+", choices=dtypes, default=["bfloat16"], help="(default bfloat16)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, .., or cpu for Triton's interpreter")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each arm, taken in turn (default 20)")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="other people's kernels too"
    )
    parser.add_argument("--arms", nargs="+", metavar="PART", help="only arms with one of these in their names")
    parser.add_argument("--inner", choices=CHOICES["inner"], help="compiler (default inductor; eager on a CPU)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no cell after so long")
    parser.add_argument("--json", metavar="FILE", help="keep the record with its raw samples, cell by cell")
    parser.add_argument("--format", choices=("table", "md", "json"), default="table", help="of what is printed")
    add_output(parser)


def _add_offline(verbs: Any) -> None:
    text = "compile every generated kernel for GPUs that are not there; exit code 1 if one does not compile"
    parser = add_verb(verbs, "offline", _run_offline, text)
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="some of sm_80 sm_90 sm_100 gfx942 (default all)")
    parser.add_argument("--widths", type=int, nargs="+", metavar="D", help="of the stream (default 768 to 7168)")
    parser.add_argument(
        "--earlier", metavar="FILE", help="a record of the same Triton: kernels that are in it are not compiled again"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="keep the record")


def _add_static(verbs: Any) -> None:
    text = (
        "launches, bytes and machine code of a read, ours and other people's, without a GPU; exit code 1 without peers"
    )
    parser = add_verb(verbs, "static", _run_static, text)
    parser.add_argument(
        "--wheels", metavar="DIR", help="other people's kernels as wheels, else those that are installed"
    )
    parser.add_argument("--earlier", metavar="FILE", help="a record of the same Triton: what it compiled is taken over")
    parser.add_argument("-o", "--output", metavar="FILE", help="keep the record")


def _run_peers(arguments: argparse.Namespace) -> int:
    """Measure reads and blocks of reads; keep the record after every cell; 1 if a kernel of ours fails."""
    check_writable(arguments.json)
    check_writable(arguments.output)
    from .against_peers.run import KernelJob, has_failures, measure_kernels
    from .against_peers.table import kernels_table
    from .against_peers.work import DIRECTIONS, LEVELS

    path: str | None = arguments.json
    job = KernelJob(
        tokens=tuple(arguments.tokens),
        width=tuple(arguments.width),
        sources=tuple(arguments.sources),
        reads=tuple(arguments.reads),
        dtype=tuple(arguments.dtype),
        level=(arguments.level,) if arguments.level else LEVELS,
        direction=(arguments.direction,) if arguments.direction else DIRECTIONS,
        rounds=arguments.rounds,
        peers=arguments.peers,
        arms=tuple(arguments.arms or ()),
        device=arguments.device,
        inner=arguments.inner,
        budget=arguments.budget,
    )

    def keep(record: dict[str, Any]) -> None:
        keep_record(record, path)

    record = measure_kernels(job, arguments.command, keep)
    text = json_text(record) if arguments.format == "json" else kernels_table(record, arguments.format)
    write_text(text, arguments.output)
    return FAILED if has_failures(record) else PASSED


def _run_offline(arguments: argparse.Namespace) -> int:
    """Compile the generated kernels; print the table and keep the record."""
    check_writable(arguments.output)
    from .offline import record as offline
    from .offline.compilation import TARGETS

    targets, widths = arguments.targets or tuple(TARGETS), arguments.widths or offline.WIDTHS
    earlier = None if arguments.earlier is None else read_record(arguments.earlier)
    record = offline.compile_kernels(targets, widths, arguments.command, earlier)
    if arguments.output is not None:
        write_text(offline.record_text(record), arguments.output)
    write_text(offline.offline_table(record), None)
    return FAILED if offline.failures(record) else PASSED


def _run_static(arguments: argparse.Namespace) -> int:
    """Record the launches; print the table and keep the record."""
    check_writable(arguments.output)
    from .static.record_apart import recorded_apart
    from .static.table import static_table, verdict

    record = recorded_apart(arguments.wheels, arguments.command, arguments.earlier)
    keep_record(record, arguments.output)
    write_text(static_table(record), None)
    return PASSED if verdict(record) else FAILED


def _run_goals(arguments: argparse.Namespace) -> int:
    """Print the goals of every GPU that the records know."""
    check_writable(arguments.output)
    from .goals.goal import goals_table
    from .goals.project_goals import project_goals

    records = [_known(path) for path in arguments.files]
    tables = [f"{gpu}\n\n{goals_table(found, arguments.format)}" for gpu, found in project_goals(records).items()]
    write_text("\n\n".join(tables), arguments.output)
    return PASSED


def _run_show(arguments: argparse.Namespace) -> int:
    """Print the table of a kept record."""
    from .against_peers.table import kernels_table
    from .offline.record import offline_table
    from .static.table import static_table

    record = _known(arguments.file, *KERNEL_KINDS)
    tables: dict[str, Callable[[dict[str, Any]], str]] = {
        KERNELS: kernels_table,
        OFFLINE: offline_table,
        STATIC: static_table,
    }
    write_text(tables[record["kind"]](record), None)
    return PASSED


def _run_plot(arguments: argparse.Namespace) -> int:
    """Draw a kept record of kernels against peers."""
    check_writable(arguments.output)
    from attnres_compile.measure.figures import figure_bytes

    from .against_peers.plot import kernels_figure

    figure = kernels_figure(_known(arguments.file, KERNELS))
    write_bytes(figure_bytes(figure, Path(arguments.output).suffix[1:].lower()), arguments.output)
    return PASSED


def _known(path: str, *kinds: str) -> dict[str, Any]:
    """The record in a file. Raises OutputError if it is no record, or of none of these kinds where some are given."""
    record: dict[str, Any] = read_record(path)
    kind = record_kind(record)
    if kind is None or (kinds and kind not in kinds):
        raise OutputError(
            f"{path} cannot be read here (its kind is {kind!r}): pass what `{NAME} peers --json FILE`, "
            f"`{NAME} offline -o FILE` or `{NAME} static -o FILE` wrote, and a record of models to `attnres bench "
            "show` or `attnres plot`"
        )
    return record
