"""The ``attnres`` command: inspect, verify, report, plot, bench. Heavy imports wait until a verb runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from attnres_compile.cli import plot_verb, report_verb
from attnres_compile.cli import verbs as cli_verbs
from attnres_compile.cli.options import (
    add_bench_model_options,
    add_kernel_options,
    add_model_options,
    add_report_options,
    add_rewrite_options,
)
from attnres_compile.models.presets import PRESETS
from attnres_kernels.errors import AttnResError

EXIT_ERROR = 1
_LEVELS = ("captured", "rewritten", "scheduled", "lowered")


class _Parser(argparse.ArgumentParser):
    """Exits with 1 on a usage error: argparse's 2 means "partly rewritten" here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done, 1 an error or a failed verification; ``inspect`` also 2 for a partly and 3 for a not rewritten
    model. An error of ours is one line on standard error, unless ``--traceback`` asks for all of it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser().parse_args(words)
    arguments.command = ["attnres", *words]
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except BrokenPipeError:
        # The reader of a pipe, say `head`, has closed it; what it wanted it has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        own = own_error(error)
        if own is None or arguments.traceback:
            raise
        print(f"attnres: error: {' '.join(str(own).split())}", file=sys.stderr)
        return EXIT_ERROR


def own_error(error: BaseException) -> AttnResError | None:
    """The error of ours that ``error`` is, or that the compiler wrapped in it; else None."""
    if isinstance(error, AttnResError):
        return error
    inner = getattr(error, "inner_exception", None) or error.__cause__
    return None if inner is None else own_error(inner)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(prog="attnres", description="Block Attention Residuals for any PreNorm transformer.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="{inspect,verify,report,plot,bench}")
    _add_inspect(verbs)
    _add_verify(verbs)
    _add_report(verbs)
    _add_plot(verbs)
    bench = verbs.add_parser("bench", help="measure the plain against the AttnRes model, kernels, or the passes")
    _add_bench(bench.add_subparsers(title="benchmarks", required=True, metavar="{model,kernels,offline,analysis,show}"))
    return parser


def _add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> Any:
    parser = verbs.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _add_model_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> Any:
    parser = _add_verb(verbs, name, run, help_text)
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
    _add_output(parser)


def _add_verify(verbs: Any) -> None:
    text = "prove the rewrite right on a model; exit code 0 passed, 1 failed"
    parser = _add_model_verb(verbs, "verify", cli_verbs.run_verify, text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_output(parser)


def _add_report(verbs: Any) -> None:
    text = (
        "what AttnRes costs a model, of any size: counted without weights, in bfloat16 and at 4096 tokens if nothing "
        "else is said; with --measure in float32 and at 512 tokens"
    )
    parser = _add_model_verb(verbs, "report", report_verb.run_report, text)
    add_report_options(parser)
    _add_output(parser)


def _add_plot(verbs: Any) -> None:
    text = "draw recorded depth weights, or a record of `attnres bench kernels` or `attnres bench model`"
    parser = _add_verb(verbs, "plot", plot_verb.run_plot, text)
    parser.add_argument("file", metavar="FILE", help="a recording that w.save(FILE) wrote, or a record of --json FILE")
    ending = "the picture; its ending chooses the format (png, svg; of depth weights also pdf)"
    parser.add_argument("-o", "--output", metavar="PICTURE", required=True, help=ending)


def _add_output(parser: Any) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of to standard output")


def _add_bench(benchmarks: Any) -> None:
    model = _add_model_verb(
        benchmarks,
        "model",
        cli_verbs.run_bench_model,
        "prefill, training step and decode step, time to compile, peak memory and launches, in pairs",
    )
    add_bench_model_options(model)
    kernels = _add_verb(
        benchmarks,
        "kernels",
        cli_verbs.run_bench_kernels,
        "reads and blocks of reads: generated kernels, torch code and other people's kernels, in turn",
    )
    add_kernel_options(kernels)
    _add_output(kernels)
    offline = _add_verb(
        benchmarks,
        "offline",
        cli_verbs.run_bench_offline,
        "compile every generated kernel for GPUs that are not there; exit code 1 if one does not compile",
    )
    offline.add_argument("--targets", nargs="+", metavar="NAME", help="some of sm_80 sm_90 sm_100 gfx942 (default all)")
    offline.add_argument("--widths", type=int, nargs="+", metavar="D", help="of the stream (default 768 to 7168)")
    offline.add_argument(
        "--earlier", metavar="FILE", help="a record of the same Triton: kernels that are in it are not compiled again"
    )
    offline.add_argument("-o", "--output", metavar="FILE", help="keep the record")
    analysis = _add_verb(
        benchmarks,
        "analysis",
        cli_verbs.run_bench_analysis,
        "seconds of capture, analysis and rewrite by depth",
    )
    analysis.add_argument("--layers", type=int, nargs="+", default=[25, 50, 100, 200], help="depths to time")
    analysis.add_argument("--rounds", type=int, default=3, help="samples per depth, of which the median counts")
    analysis.add_argument("--json", metavar="FILE", help="keep the record with its raw samples")
    show = _add_verb(benchmarks, "show", cli_verbs.run_bench_show, "print the table of a kept record")
    show.add_argument("file", metavar="FILE", help="a record that --json wrote")


if __name__ == "__main__":
    sys.exit(main())
