"""Triton text to kernels; the only file that a kernel is made through.

Each text is written to a file named after its content and imported from there, so that a traceback shows its lines,
Triton finds its source, and equal texts are one kernel. Triton's own cache keeps the compiled code.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from attnres_kernels.launch import tuning
from attnres_kernels.launch.tuning import Choice

DUMP_VARIABLE = "ATTNRES_DUMP"
"""Where graphs are written to, and kernels beside them, if it is set."""

FUSION_VARIABLE = "TRITON_DEFAULT_FP_FUSION"
"""Whether Triton joins a product and a sum into one instruction; ours count on it. From 3.10 on it is off unless this
is set, and 3.9 warns of that. Inductor hands no such option on for kernels that it did not write, and its processes
that compile inherit the variable, so it is set here, before any of them starts; a value that the user has set stays.
"""
os.environ.setdefault(FUSION_VARIABLE, "1")

HEADER = "import triton\nimport triton.language as tl\n\n\n"


def kernel_folder() -> Path:
    """Where the generated files are: a folder of this user's in the system's folder for temporary files."""
    return Path(tempfile.gettempdir()) / f"attnres_{getpass.getuser()}"


@cache
def load_kernel(text: str) -> Any:
    """The ``triton.jit`` function that ``text`` defines; the same object for the same text.

    Args:
        text: source of one function, as the generators of this package write it, without imports.

    Raises:
        ImportError: Triton is not installed.
    """
    path = kernel_folder() / _file_name(text)
    source = f"{HEADER}{text}"
    if not path.exists() or path.read_text() != source:  # a folder for temporary files is open to others
        _write(path, source)
    spec = importlib.util.spec_from_file_location(f"attnres_generated.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, _name(text))


def _name(text: str) -> str:
    return text.partition("def ")[2].partition("(")[0]


def _file_name(text: str) -> str:
    digest = hashlib.sha256(f"{HEADER}{text}".encode()).hexdigest()[:16]
    return f"{_name(text)}_{digest}.py"


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def triton_operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that makes an operator of a function that launches kernels.

    A compiler traces through it to the kernels (``triton_op``), unless those are interpreted: they are Python, which
    nothing can be traced through, so that the operator is opaque then.
    """
    make = torch.library.custom_op if is_interpreted() else torch.library.triton_op
    return make(name, mutates_args=())


def launchable(text: str, choices: tuple[Choice, ...]) -> Any:
    """The kernel of ``text``, as a compiler can trace it: ``launchable(text, choices)[grid](*arguments)`` launches it.

    Args:
        text: of a generator.
        choices: numbers of the launch, which are none of the arguments; the first of them, unless launches are tuned. A
            grid that depends on them is a function of a dict with the constants.

    Raises:
        TuningError: what ATTNRES_AUTOTUNE asks for cannot be.
    """
    directory = os.environ.get(DUMP_VARIABLE)
    if directory:
        path = Path(directory) / "kernels" / _file_name(text)
        if not path.exists():
            _write(path, f"{HEADER}{text}")
    kernel = load_kernel(text)
    if tuning.is_on() and len(choices) > 1:
        return _traceable(tuning.tuned(kernel, choices))
    return _Launchable(_traceable(kernel), choices[0])


@dataclass(frozen=True)
class _Launchable:
    kernel: Any
    choice: Choice

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return partial(self.kernel[grid], **self.choice.numbers())


def _traceable(kernel: Any) -> Any:
    return kernel if is_interpreted() else torch.library.wrap_triton(kernel)


def _write(path: Path, source: str) -> None:
    """Several processes may write the same file at once, so each renames a whole one into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        file.write(source)
    os.replace(temporary, path)
