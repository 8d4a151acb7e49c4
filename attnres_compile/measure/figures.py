"""How the pictures of records are made: by matplotlib, the same bytes for the same record."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from attnres_compile.models.errors import MissingExtraError
from attnres_compile.report.comparison import MeasureError

LINE = 0.17
"""Height of a line of small text, in inches."""

# Text stays text, ids of elements come from the picture alone, and nothing says when or by what it was drawn.
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "attnres"}
_UNSAID = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


def new_figure(width: float, height: float) -> Any:
    """An empty figure.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "drawing needs the package matplotlib: run `pip install 'attnres-compile[plot]'`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def figure_bytes(figure: Any, form: str) -> bytes:
    """The content of a file with ``figure``.

    Args:
        figure: of matplotlib.
        form: ``svg`` or ``png``.

    Raises:
        MeasureError: another form.
    """
    from matplotlib import rc_context

    if form not in _UNSAID:
        raise MeasureError(f"{form!r} is not a form of these pictures: use one of {', '.join(_UNSAID)}")
    content = io.BytesIO()
    with rc_context(_SETTINGS):
        figure.savefig(content, format=form, dpi=150, metadata=_UNSAID[form])
    return content.getvalue()


def wrapped(notes: Sequence[str], width: float) -> list[str]:
    """Lines of small text that fit a figure.

    Args:
        notes: one or more lines each.
        width: of the figure, in inches.
    """
    return [line for note in notes for line in textwrap.wrap(note, int(15 * width), subsequent_indent="    ")]


def write_notes(figure: Any, lines: Sequence[str]) -> None:
    """Put lines of small text at the top of a figure.

    Args:
        figure: or a part of one, LINE inches high for each line.
        lines: as ``wrapped`` gives them.
    """
    figure.text(0.01, 1.0, "\n".join(lines), va="top", fontsize=7, family="monospace")


def title(record: dict[str, Any]) -> str:
    """What a record was measured on; a picture of the interpreter says that it is one."""
    environment = record["environment"]
    interpreted = " in Triton's interpreter: not to be quoted" if environment.get("triton_interpreter") else ""
    return f"{environment['device']}{interpreted}, torch {environment['versions']['torch']}, {environment['date'][:10]}"
