"""The generated parts of the pages, and the pictures: NAME.py has those of NAME.md.

A part is a function without arguments that returns Markdown; it is found by the name of its page and its own name.
"""

import os
from collections import defaultdict
from collections.abc import Callable

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are shown, and neither compiled nor run

PARTS: dict[str, dict[str, Callable[[], str]]] = defaultdict(dict)
"""The parts of each page: ``PARTS["how_it_works"]["plan"]()`` is the text between its marks."""

PICTURES: dict[str, Callable[[], str]] = {}
"""What draws each SVG of the folder ``pictures``, by the name of its file without the ending."""

PICTURE_SETS: list[Callable[[], dict[str, str]]] = []
"""What draws as many SVGs as there is something to draw of, by the names of their files without the ending."""


def part(function: Callable[[], str]) -> Callable[[], str]:
    """Mark a function as a part of the page that its module is named after."""
    page = function.__module__.rpartition(".")[2]
    PARTS[page][function.__name__] = function
    return function


def picture(function: Callable[[], str]) -> Callable[[], str]:
    """Mark a function as one that draws a picture: ``gpt2_unfolded`` draws ``pictures/gpt2-unfolded.svg``."""
    PICTURES[function.__name__.replace("_", "-")] = function
    return function


def pictures(function: Callable[[], dict[str, str]]) -> Callable[[], dict[str, str]]:
    """Mark a function as one that draws several pictures, and gives the name of each."""
    PICTURE_SETS.append(function)
    return function
