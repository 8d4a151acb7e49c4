"""The ``attnres`` command: inspect, verify, report, plot, bench, sweep. Heavy imports wait until a verb runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from attnres_compile.cli import plot_verb, report_verb, sweep_verb
from attnres_compile.cli import verbs as cli_verbs
from attnres_compile.cli.command import CommandParser, add_output, add_verb, run_command
from attnres_compile.cli.options import (
    add_bench_model_options,
    add_model_options,
    add_report_options,
    add_rewrite_options,
)
from attnres_compile.models.presets import PRESETS

_LEVELS = ("captured", "rewritten", "scheduled", "lowered")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done, 1 an error or a failed verification; ``inspect`` also 2 if some streams are rewritten and 3 if none is;
    ``sweep`` also 2 if a model was at fault.
    """
    return run_command(build_parser(), sys.argv[1:] if argv is None else argv, "attnres")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = CommandParser(prog="attnres", description="Block Attention Residuals for any PreNorm transformer.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="{inspect,verify,report,plot,bench,sweep}")
    _add_inspect(verbs)
    _add_verify(verbs)
    _add_report(verbs)
    _add_plot(verbs)
    bench = verbs.add_parser("bench", help="measure the plain against the AttnRes model, or the passes")
    _add_sweep(verbs)
    _add_bench(bench.add_subparsers(title="benchmarks", required=True, metavar="{model,analysis,show}"))
    return parser


def _add_model_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> Any:
    parser = add_verb(verbs, name, run, help_text)
    add_model_options(parser)
    add_rewrite_options(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "presets:\n" + "\n".join(f"  {one.name:14}{one.source}" for one in PRESETS.values())
    return parser


def _add_inspect(verbs: Any) -> None:
    text = "what is rewritten in a model, and what is not and why; exit code 0 all, 2 partly, 3 nothing"
    parser = _add_model_verb(verbs, "inspect", cli_verbs.run_inspect, text)
    parser.add_argument(
        "--format",
        choices=("text", "html", "svg", "dot", "json"),
        default="text",
        help="html: one page with pictures, tables and graphs; svg: the picture; dot: for Graphviz (default text)",
    )
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--diff", action="store_true", help="the streams before and after, as a unified diff")
    parser.add_argument("--level", choices=_LEVELS, help="also print the graph at this level")
    parser.add_argument(
        "--expand",
        action="append",
        metavar="LAYER",
        help="do not fold this layer into its neighbours: a path (model.layers.3), its end, its number, or all; "
        "may repeat",
    )
    add_output(parser)


def _add_verify(verbs: Any) -> None:
    text = "prove the rewrite right on a model; exit code 0 passed, 1 failed"
    parser = _add_model_verb(verbs, "verify", cli_verbs.run_verify, text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_output(parser)


def _add_report(verbs: Any) -> None:
    text = (
        "what AttnRes costs a model, of any size: counted without weights, in bfloat16 and at 4096 tokens if nothing "
        "else is said; with --measure in float32 and at 512 tokens"
    )
    parser = _add_model_verb(verbs, "report", report_verb.run_report, text)
    add_report_options(parser)
    add_output(parser)


def _add_plot(verbs: Any) -> None:
    text = "draw recorded depth weights, or a record of `attnres bench model`"
    parser = add_verb(verbs, "plot", plot_verb.run_plot, text)
    parser.add_argument("file", metavar="FILE", help="a recording that w.save(FILE) wrote, or a record of --json FILE")
    ending = "the picture; its ending chooses the format (png, svg; of depth weights also pdf)"
    parser.add_argument("-o", "--output", metavar="PICTURE", required=True, help=ending)


def _add_sweep(verbs: Any) -> None:
    text = (
        "make every model type of a library small, plan it, and verify what is rewritten; exit code 0 without a fault, "
        "2 if a model raised an error that is none of ours or was not verified"
    )
    parser = add_verb(verbs, "sweep", sweep_verb.run_sweep, text)
    sweep_verb.add_sweep_options(parser)
    add_output(parser)


def _add_bench(benchmarks: Any) -> None:
    model = _add_model_verb(
        benchmarks,
        "model",
        cli_verbs.run_bench_model,
        "prefill, training step and decode step, time to compile, peak memory and launches, in pairs",
    )
    add_bench_model_options(model)
    analysis = add_verb(
        benchmarks, "analysis", cli_verbs.run_bench_analysis, "seconds of capture, analysis and rewrite by depth"
    )
    analysis.add_argument("--layers", type=int, nargs="+", default=[25, 50, 100, 200], help="depths to time")
    analysis.add_argument("--rounds", type=int, default=3, help="samples per depth, of which the median counts")
    analysis.add_argument("--json", metavar="FILE", help="keep the record with its raw samples")
    show = add_verb(benchmarks, "show", cli_verbs.run_bench_show, "print the table of a kept record")
    show.add_argument("file", metavar="FILE", help="a record that --json wrote")


if __name__ == "__main__":
    sys.exit(main())
