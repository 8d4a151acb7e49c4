"""Command-line options that several verbs share, each declared once."""

from __future__ import annotations

import argparse
from typing import Any

from attnres_compile.models.load_options import DTYPES, LoadOptions
from attnres_passes.config import CHOICES, DEFAULT_NUM_BLOCKS

# Option of the command line -> field of AttnResConfig.
_CONFIG_FIELDS = (
    "num_blocks",
    "block_size",
    "scale",
    "schedule",
    "inner",
    "on_decline",
    "allow_unnormed",
    "eps",
)


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
    blocks.add_argument("--num-blocks", type=int, help=f"blocks per stream (default {DEFAULT_NUM_BLOCKS})")
    blocks.add_argument("--block-size", type=int, help="writes per block; 1 is Full AttnRes")
    group.add_argument("--scale", choices=CHOICES["scale"], help="softmax average (mean) or times the sources (sum)")
    group.add_argument("--schedule", choices=CHOICES["schedule"], help="how the reads of a block are computed")
    group.add_argument("--inner", choices=CHOICES["inner"], help="compiler of the rewritten graph")
    group.add_argument("--on-decline", choices=CHOICES["on_decline"], help="if no stream can be rewritten")
    group.add_argument("--eps", type=float, help="of the key norm")
    group.add_argument(
        "--allow-unnormed", action="store_const", const=True, help="also rewrite streams read without a norm"
    )
    group.add_argument(
        "--stream",
        action="append",
        metavar="NAME",
        dest="streams",
        help="rewrite this stream only; may repeat",
    )


def load_options(arguments: argparse.Namespace, default_seq: int | None = None) -> LoadOptions:
    """LoadOptions from the parsed arguments. Raises LoadOptionError."""
    names = ("batch", "seq", "dtype", "device", "seed")
    values: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    return LoadOptions(**values) if default_seq is None else LoadOptions(**values, default_seq=default_seq)


def rewrite_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the rewrite that were given, as keywords of the API."""
    given = {name: getattr(arguments, name) for name in _CONFIG_FIELDS if getattr(arguments, name) is not None}
    if arguments.streams:
        given["streams"] = tuple(arguments.streams)
    return given
