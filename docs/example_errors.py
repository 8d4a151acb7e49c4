"""What docs/errors.md uses: a prepared model, and two ways to show an error."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from example_model import TinyGPT, example

import attnres_compile
from attnres_compile.cli.main import main

IDS = example()[1][0]
EAGER = {"inner": "eager"}
"""Options of the backend on this page: without another compiler behind it, small models compile in a moment."""


class Model(TinyGPT):
    """The model of docs/example_model.py, with a method that calls it."""

    def generate(self, ids: torch.Tensor) -> torch.Tensor:
        return self(ids)


def prepared(**options: Any) -> Model:
    """A model that was never compiled. Graphs of the sections before are dropped."""
    torch.compiler.reset()
    model = Model()
    attnres_compile.prepare(model, (IDS,), num_blocks=2, **options)
    return model


@contextlib.contextmanager
def shown(kind: type[Exception] = attnres_compile.AttnResError) -> Iterator[None]:
    """Print the error that a block raises, folded; not to raise one is an error.

    Args:
        kind: that it must be of.
    """
    try:
        yield
    except kind as error:
        # What torch adds to the message of an error in a compilation depends on where torch and this file are.
        inner = getattr(error, "inner_exception", None) or error
        print(folded(f"{type(inner).__name__}: {inner}"))
    else:
        raise AssertionError(f"no {kind.__name__}")


def folded(text: str) -> str:
    """A message in lines of 110 characters, with files by their names alone."""
    text = re.sub(r"[^\s'(]*/(?=\w+\.py\b)", "", text)
    lines = (textwrap.wrap(line, 110, break_on_hyphens=False, break_long_words=False) for line in text.splitlines())
    return "\n".join(part for line in lines for part in line)


def attnres(words: str) -> int:
    """Run the command ``attnres`` and print what it says on standard error; returns its exit code."""
    with contextlib.redirect_stderr(_Folding(sys.stdout)), contextlib.redirect_stdout(io.StringIO()):
        return main(words.split())


class _Folding(io.TextIOBase):
    """A stream that folds what is written to it into another one."""

    def __init__(self, into: Any) -> None:
        self.into = into

    def write(self, text: str) -> int:
        if text.strip():
            self.into.write(f"{folded(text)}\n")
        return len(text)


def two_ranks(*microbatches: int) -> bool:
    """Make a pipeline of two processes, and print what the second says; returns whether both made it.

    Args:
        microbatches: that each of them asks for.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", "import example_errors; example_errors.run_rank()", f"{folder}/store"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen([*words, str(rank), str(count)], env=environment, stdout=subprocess.PIPE, text=True)
            for rank, count in enumerate(microbatches)
        ]
        texts = [rank.communicate()[0] for rank in ranks]
    print(texts[1], end="")
    return not any(texts) and not any(rank.returncode for rank in ranks)


def run_rank() -> None:
    """One of those processes."""
    store, rank, microbatches = sys.argv[1:]
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=int(rank), world_size=2)
    try:
        attnres_compile.pipeline(Model(), (IDS,), microbatches=int(microbatches), schedule="GPipe", inner="eager")
    except attnres_compile.AttnResError as error:
        print(folded(f"{type(error).__name__}: {error}"))
    dist.destroy_process_group()
