"""The base of every exception of the project; it lives in the lowest package so that all three can raise it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

PAGE = "docs/errors.md"
"""The page about errors, in the repository; a wheel installs it too, as share/doc/attnres-compile/errors.md."""


class AttnResError(Exception):
    """Base of every exception raised by attnres_compile, attnres_passes and attnres_kernels.

    Every message says what to do, and its last line names the section of the class on the page about errors.
    """

    @property
    def message(self) -> str:
        """What was found and what to do, without the line that names the section."""
        return super().__str__()

    def __str__(self) -> str:
        pointer = f"See {section_of(type(self))}."
        # torch makes some errors anew from the text of another: of a worker thread, for one.
        return self.message if pointer in self.message else f"{self.message}\n{pointer}"

    def __reduce__(self) -> tuple[Any, ...]:
        # By its text: a class may make that from other arguments.
        return _made_again, (type(self), self.args), self.__dict__


def section_of(kind: type[AttnResError]) -> str:
    """Where a class of error is explained, or its nearest base of ours if it is not ours itself."""
    ours = next(one for one in kind.__mro__ if one.__module__.startswith("attnres_"))
    return f"{PAGE}#{ours.__name__.lower()}"


def _made_again(kind: type[AttnResError], args: tuple[Any, ...]) -> AttnResError:
    return kind.__new__(kind, *args)


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


class SecondDerivativeError(AttnResError, RuntimeError):
    """The gradients of a depth attention are differentiated, and its schedule has no second derivatives."""
