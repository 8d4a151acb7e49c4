"""The base of every exception of the project; it lives in the lowest package so that all three can raise it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AttnResError(Exception):
    """Base of every exception raised by attnres_compile, attnres_passes and attnres_kernels.

    Every message ends with what to do.
    """


def closest(given: str, valid: Iterable[str], most: int = 1, cutoff: float = 0.5) -> list[str]:
    """The valid names that a wrong one was probably meant to be, the likeliest first.

    Args:
        given: what is not valid.
        valid: what is.
        most: names to return.
        cutoff: how alike a name has to be, from 0 to 1 (``difflib``).
    """
    return difflib.get_close_matches(given, list(valid), most, cutoff)


class UnsupportedSourcesError(AttnResError):
    """The sources of a depth attention do not agree in shape or dtype, or are not floating point."""
