"""Runs the Python blocks of a page, in order, in one scope, and keeps what each printed.

A block is compiled as if it were a file `train.py` of its own, so that lines of it in messages are those of the block.
The compiler behind the rewrite is aot_eager wherever a page leaves it at Inductor, which would take minutes and changes
nothing that is printed.

python docs/page_runs.py PAGE RESULT    # for pages that run under torchrun: rank 0 writes what it printed as JSON
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from attnres_passes.torch_private import inner_compilers

# A message has no Python block in it, so that code and parts can be told apart in one pass.
CODE_OR_PRINTED = re.compile(r"^```python\n(?P<code>.*?)^```$|<!-- generated: printed -->", re.MULTILINE | re.DOTALL)
PROCESSES = re.compile(r"^<!-- run: torchrun --standalone --nproc-per-node (?P<processes>\d+) -->$", re.MULTILINE)
ROUNDING = re.compile(r"\b\d\.\de-\d\d\b")


def printed_by(page: Path) -> list[str]:
    """What the code before each part named ``printed`` has printed since the one before it.

    Numbers of rounding, such as 3.1e-07, depend on the machine, and are blanked.
    """
    text = page.read_text()
    found = PROCESSES.search(text)
    outputs = in_processes(page, int(found["processes"])) if found else list(outputs_of(text))
    return [ROUNDING.sub("#.#e-##", output) for output in outputs]


def in_processes(page: Path, processes: int) -> list[str]:
    """Run a page in several processes that torchrun starts; what rank 0 printed.

    Args:
        page: whose code asks for its rank.
        processes: on this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "printed.json"
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        subprocess.run([sys.executable, *words, __file__, str(page), str(result)], check=True)
        return list(json.loads(result.read_text()))


def outputs_of(text: str) -> Iterator[str]:
    """Run a page from its start to its end, in an empty folder, beside nothing that was compiled before."""
    torch.compiler.reset()
    scope: dict[str, object] = {"__name__": "__main__"}
    output = io.StringIO()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), without_inductor():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            for found in CODE_OR_PRINTED.finditer(text):
                code = found["code"]
                if code is None:
                    yield output.getvalue()
                    output = io.StringIO()
                    continue
                # Dynamo looks up the lines of what it compiles.
                linecache.cache["train.py"] = len(code), None, code.splitlines(keepends=True), "train.py"
                with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
                    exec(compile(code, "train.py", "exec"), scope)
        finally:
            os.chdir(before)


@contextlib.contextmanager
def without_inductor() -> Iterator[None]:
    """Inside, whoever asks for Inductor gets aot_eager."""
    compile_inner = inner_compilers.compile_inner

    def in_its_place(gm: Any, inputs: Any, inner: str, mode: str | None) -> Any:
        return (
            compile_inner(gm, inputs, "aot_eager", None)
            if inner == "inductor"
            else compile_inner(gm, inputs, inner, mode)
        )

    inner_compilers.compile_inner = in_its_place
    try:
        yield
    finally:
        inner_compilers.compile_inner = compile_inner


if __name__ == "__main__":
    printed = list(outputs_of(Path(sys.argv[1]).read_text()))
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[2]).write_text(json.dumps(printed))
