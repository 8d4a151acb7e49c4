"""Real text that every machine has: the source of the standard library, and docstrings of two installed packages.

Bytes are the tokens. Whole files are trained on or validated on, by a hash of their names, so that the split is the
same wherever the files are. What the text is depends on the versions of Python and of the packages; its digest is among
the settings of every run, and runs on another text are no runs of the same table.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DOCUMENTED = ("networkx", "torch.nn")
"""Packages whose docstrings are read: both are there wherever this project is installed."""

VALIDATION_SHARE = 0.1
_MADE_AT_BUILD = ("_sysconfigdata", "__phello__", "sitecustomize", "usercustomize")
"""Modules that depend on the machine on which Python was built or is installed."""


@dataclass(frozen=True, eq=False)
class Text:
    """Bytes to train and to validate on. digest: of both."""

    training: Tensor
    validation: Tensor
    digest: str


def pieces() -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of the text, in the order of the names."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py")):
        if not path.name.startswith(_MADE_AT_BUILD):
            yield f"stdlib/{path.name}", path.read_bytes()
    for package in DOCUMENTED:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for folder in map(Path, spec.submodule_search_locations or ()):
            for path in sorted(folder.rglob("*.py")):
                name = path.relative_to(folder).as_posix()
                if "tests/" not in name:
                    yield f"{package}/{name}", docstrings(path.read_text(encoding="utf-8")).encode()


def docstrings(source: str) -> str:
    """The docstrings of a module, its classes and functions, outermost first, a blank line between them."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return "".join(f"{text}\n\n" for text in found if text)


def is_validated_on(name: str) -> bool:
    """Whether a file is kept from training; by its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 * VALIDATION_SHARE


@functools.cache
def text() -> Text:
    """All of it."""
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for name, content in pieces():
        parts[is_validated_on(name)].append(content)
    training, validation = b"".join(parts[False]), b"".join(parts[True])
    digest = hashlib.sha256(training + b"\0" + validation).hexdigest()[:16]
    return Text(_tensor(training), _tensor(validation), digest)


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def training_batches(tokens: Tensor, rows: int, length: int, seed: int) -> Iterator[Tensor]:
    """Random windows without end, the same for the same seed.

    Args:
        tokens: bytes of the text.
        rows: of a batch.
        length: of a window.
        seed: of the choice.

    Yields:
        int64 ``[rows, length]``.
    """
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    while True:
        starts = torch.randint(0, len(tokens) - length, (rows,), generator=generator)
        yield torch.stack([tokens[start : start + length] for start in starts.tolist()]).long()


def validation_batches(tokens: Tensor, rows: int, length: int, count: int) -> list[Tensor]:
    """Windows at equal distances, the same in every run.

    Args:
        tokens: bytes of the text.
        rows: of a batch.
        length: of a window.
        count: of batches.

    Returns:
        int64 ``[rows, length]`` each.
    """
    starts = torch.linspace(0, len(tokens) - length, rows * count, dtype=torch.float64).long().tolist()
    windows = torch.stack([tokens[start : start + length] for start in starts]).long().reshape(count, rows, length)
    return [windows[batch] for batch in range(count)]
