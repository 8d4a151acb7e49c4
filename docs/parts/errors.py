"""The parts of errors.md: what its own blocks of code print."""

from __future__ import annotations

import contextlib
import functools
import io
import linecache
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from parts import part
from parts.layout import fenced

PAGE = Path(__file__).resolve().parents[1] / "errors.md"
# A message has no Python block in it, so that code and parts can be told apart in one pass.
CODE_OR_PART = re.compile(r"^```python\n(?P<code>.*?)^```$|<!-- generated: printed -->", re.MULTILINE | re.DOTALL)


@part
def printed() -> str:
    """What the code before this part has printed since the last such part; each call is for the next part."""
    return fenced(next(_printed()))


@functools.cache
def _printed() -> Iterator[str]:
    return iter(list(_outputs()))


def _outputs() -> Iterator[str]:
    """Run the page from its start to its end, in an empty folder."""
    scope: dict[str, object] = {"__name__": "__main__"}
    output = io.StringIO()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            for found in CODE_OR_PART.finditer(PAGE.read_text()):
                code = found["code"]
                if code is None:
                    yield output.getvalue()
                    output = io.StringIO()
                    continue
                # Dynamo looks up the lines of what it compiles.
                linecache.cache["train.py"] = len(code), None, code.splitlines(keepends=True), "train.py"
                with contextlib.redirect_stdout(output):
                    exec(compile(code, "train.py", "exec"), scope)
        finally:
            os.chdir(before)
