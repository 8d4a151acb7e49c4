"""The one place that imports transformers, when it is needed, and says plainly why that failed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from attnres_compile.models.errors import MissingExtraError


def import_transformers() -> ModuleType:
    """The transformers package. Raises MissingExtraError if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            "presets and configurations are built by transformers, which is not installed: "
            "run `pip install 'attnres-compile[hf]'`, or name your own model as module:factory"
        ) from error


def find_class(name: str) -> Any:
    """The class ``name`` of transformers, or None if it has none of that name. Raises MissingExtraError."""
    transformers = import_transformers()
    with explained_imports(name):
        return getattr(transformers, name, None)


@contextmanager
def explained_imports(name: str) -> Iterator[None]:
    """Turn an import that fails inside transformers into MissingExtraError with the error at its root.

    transformers imports a model's module at its first use, and with it optional packages that may be broken.
    """
    try:
        yield
    except ImportError as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = " ".join(str(root).split())
        raise MissingExtraError(
            f"transformers cannot import {name} ({type(root).__name__}: {reason}): repair or uninstall the "
            "package that this names"
        ) from error
