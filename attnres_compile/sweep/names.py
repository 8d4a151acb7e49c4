"""The models of a sweep, by library."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

from attnres_compile.sweep.making import hf_models, timm_models
from attnres_compile.sweep.making.small_model import SmallModel

LIBRARIES = ("transformers", "timm")

_NAMES: dict[str, Callable[[], list[str]]] = {
    "transformers": hf_models.model_types,
    "timm": timm_models.model_names,
}
_MAKERS: dict[str, Callable[[str], SmallModel]] = {
    "transformers": hf_models.small_model,
    "timm": timm_models.small_model,
}


def names(library: str, pattern: str = "*") -> list[str]:
    """The models of a library, in the order they are swept.

    Args:
        library: one of LIBRARIES.
        pattern: of shells, as in ``fnmatch``: several with commas between them.

    Raises:
        MissingExtraError: the library is not installed.
    """
    patterns = pattern.split(",")
    return [name for name in _NAMES[library]() if any(fnmatch.fnmatchcase(name, one) for one in patterns)]


def make(library: str, name: str) -> SmallModel:
    """One model, small.

    Args:
        library: one of LIBRARIES.
        name: one of ``names``.

    Raises:
        NotMadeError: it was not made.
    """
    return _MAKERS[library](name)
