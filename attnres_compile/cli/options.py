"""Command-line options that several verbs share, each declared once."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from attnres_compile.models.errors import ConfigSourceError
from attnres_compile.models.load_options import DTYPES, LoadOptions
from attnres_passes.ir.config import CHOICES, DEFAULT_NUM_BLOCKS, MECHANISM

# Option of the command line -> field of AttnResConfig.
_CONFIG_FIELDS = (
    *("num_blocks", "block_size", "scale", "schedule", "inner", "on_decline", "allow_unnormed", "eps"),
    *MECHANISM,
)
_SIZES = frozenset({"num_blocks", "block_size"})

REPORT_SEQ = 4096
MEASURED_SEQ = 512
"""Tokens per row of ``attnres report``, without and with ``--measure``."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """MODEL, the shape of its example inputs, and where to run it."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a preset (gpt2, llama-tiny, vit-b-16, ..), a transformers config.json or its directory, "
        "or module:factory",
    )
    group = parser.add_argument_group("example inputs")
    group.add_argument("--batch", type=int, default=1, help="rows (default 1)")
    group.add_argument("--seq", type=int, help="tokens per row")
    group.add_argument("--dtype", default="float32", choices=DTYPES, help="of parameters and floating inputs")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, .. (default cpu)")
    group.add_argument("--seed", type=int, default=0, help="of the random weights and inputs (default 0)")


def add_rewrite_options(parser: argparse.ArgumentParser) -> None:
    """The fields of AttnResConfig; what is left out keeps the default of the API."""
    group = parser.add_argument_group("rewrite")
    blocks = group.add_mutually_exclusive_group()
    blocks.add_argument("--num-blocks", "--blocks", type=int, help=f"blocks per stream (default {DEFAULT_NUM_BLOCKS})")
    blocks.add_argument("--block-size", type=int, help="writes per block; 1 is Full AttnRes")
    blocks.add_argument("--full", action="store_const", const=1, dest="block_size", help="the same as --block-size 1")
    group.add_argument("--scale", choices=CHOICES["scale"], help="softmax average (mean) or times the sources (sum)")
    group.add_argument("--schedule", choices=CHOICES["schedule"], help="how the reads of a block are computed")
    group.add_argument("--inner", choices=CHOICES["inner"], help="compiler of the rewritten graph")
    group.add_argument("--on-decline", choices=CHOICES["on_decline"], help="if no stream can be rewritten")
    group.add_argument("--eps", type=float, help="of the key norm")
    group.add_argument(
        "--allow-unnormed", action="store_const", const=True, help="also rewrite streams read without a norm"
    )
    group.add_argument(
        "--stream", action="append", metavar="NAME", dest="streams", help="rewrite this stream only; may be repeated"
    )
    _add_mechanism_options(parser)


def _add_mechanism_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("variants of the mechanism, for those who compare (docs/variants.md)")
    group.add_argument("--key-norm", choices=CHOICES["key_norm"], help="RMSNorm on the keys (default weight)")
    group.add_argument("--logit-scale", type=float, help="factor of the logits (default 1)")
    group.add_argument("--mixing", choices=CHOICES["mixing"], help="what makes weights of logits (default softmax)")
    group.add_argument("--window", type=int, help="completed blocks that a read attends to, the last ones")
    group.add_argument("--heads", type=int, help="parts of the width with weights of their own (default 1)")
    group.add_argument("--query", choices=CHOICES["query"], help="a learned vector, or made of the input")


def add_bench_model_options(parser: argparse.ArgumentParser) -> None:
    """What ``attnres bench model`` measures, and how often."""
    parser.add_argument(
        "--schedules",
        nargs="+",
        metavar="SCHEDULE",
        choices=CHOICES["schedule"],
        help="several schedules instead of one, each against the plain model: " + ", ".join(CHOICES["schedule"]),
    )
    parser.add_argument(
        "--workload",
        nargs="+",
        choices=("prefill", "training", "decode", "forward"),
        help="only these (default prefill, training and decode; forward is another name of prefill)",
    )
    parser.add_argument("--rounds", type=int, default=20, help="paired samples of each latency (default 20)")
    parser.add_argument(
        "--compile-time", action="store_true", help="also the time to compile prefill and training, in fresh processes"
    )
    parser.add_argument("--compile-rounds", type=int, default=3, help="processes of each side (default 3)")
    parser.add_argument("--no-dropout", action="store_true", help="set every dropout to zero on both sides")
    parser.add_argument("--json", metavar="FILE", help="keep the record with its raw samples, cell by cell")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """What ``attnres report`` shows, and how."""
    parser.set_defaults(dtype=None)
    parser.add_argument(
        "--format",
        choices=("table", "md", "csv", "json", "html", "svg", "png"),
        help="(default by the output's name, else table)",
    )
    parser.add_argument("--details", action="store_true", help="all rows, and not the short table only")
    parser.add_argument("--stages", type=int, metavar="P", help="also what a pipeline of P ranks sends")
    parser.add_argument("--virtual", type=int, metavar="V", help="chunks of each of these ranks (default 1)")
    parser.add_argument(
        "--checkpoint",
        choices=("none", "layer", "branch"),
        default="none",
        help="what is under torch.utils.checkpoint: every layer, or the branch of every sublayer (default none)",
    )
    parser.add_argument("--fsdp", type=int, default=1, metavar="N", help="also what FSDP2 sends over N ranks")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="also what N tensor-parallel ranks sum")
    parser.add_argument(
        "--sweep", choices=("blocks",), help="the trade-off over the number of blocks, as table or plot"
    )
    parser.add_argument(
        "--capture-seq",
        type=int,
        metavar="N",
        help="capture at N tokens and scale, for models whose graph grows with the length; known for presets",
    )
    parser.add_argument("--measure", action="store_true", help="also time the compiled models against each other")
    parser.add_argument("--rounds", type=int, help="paired samples of each latency (default 20)")


def load_options(arguments: argparse.Namespace, default_seq: int | None = None) -> LoadOptions:
    """How to load the model.

    Args:
        arguments: parsed, of a verb with a MODEL.
        default_seq: tokens per row where none are asked for; None for the default of ``LoadOptions``.

    Raises:
        LoadOptionError: a value cannot be.
    """
    names = ("batch", "seq", "dtype", "device", "seed")
    values: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    return LoadOptions(**values) if default_seq is None else LoadOptions(**values, default_seq=default_seq)


def report_load_options(arguments: argparse.Namespace) -> LoadOptions:
    """Without weights, in bfloat16 and at REPORT_SEQ tokens, but for what is measured or asked for otherwise."""
    measured = arguments.measure
    return LoadOptions(
        batch=arguments.batch,
        seq=arguments.seq,
        dtype=arguments.dtype or ("float32" if measured else "bfloat16"),
        device=arguments.device,
        seed=arguments.seed,
        default_seq=MEASURED_SEQ if measured else REPORT_SEQ,
        weightless=not measured,
        capture_seq=arguments.capture_seq,
    )


def rewrite_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the rewrite that were given, as keywords of the API; before them, those of a saved plan.

    Raises:
        ConfigSourceError: MODEL is a directory whose plan cannot be read.
    """
    given = {name: getattr(arguments, name) for name in _CONFIG_FIELDS if getattr(arguments, name) is not None}
    if arguments.streams:
        given["streams"] = tuple(arguments.streams)
    saved = _saved_options(Path(arguments.model))
    if not _SIZES.isdisjoint(given):
        saved = {name: value for name, value in saved.items() if name not in _SIZES}
    return saved | given


def _saved_options(folder: Path) -> dict[str, Any]:
    """What the plan in a directory fixes, which ``attnres_compile.save`` puts beside a model's own files."""
    file = folder / "attnres.json"
    if not file.is_file():
        return {}
    from attnres_compile.model.planned_config import FIXED_BY_PLAN

    try:
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
        saved = {name: config[name] for name in FIXED_BY_PLAN if config.get(name) is not None}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigSourceError(
            f"{file} cannot be read as a plan ({type(error).__name__}: {error}): save the model again, or name its "
            "config.json for the plan that the options give"
        ) from error
    return saved | ({"streams": tuple(saved["streams"])} if "streams" in saved else {})
