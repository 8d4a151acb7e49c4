"""A page as a notebook: its Python blocks are the cells of code, and what is between them is text.

Outputs are not kept: the page shows them, and a test runs the notebook and compares.
"""

from __future__ import annotations

import re

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PYTHON = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"<!-- generated: \S+ -->\n.*?<!-- end -->\n", re.DOTALL)


def notebook_of(page: str) -> str:
    """The text of an ``.ipynb`` file."""
    page = GENERATED.sub("", page)
    cells, end = [], 0
    for block in PYTHON.finditer(page):
        cells += [_text(page[end : block.start()]), new_code_cell(block["code"].rstrip())]
        end = block.end()
    cells = [cell for cell in [*cells, _text(page[end:])] if cell.source]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # random otherwise
    book = new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.validate(book)
    return str(nbformat.writes(book, indent=1)) + "\n"


def _text(markdown: str) -> nbformat.NotebookNode:
    return new_markdown_cell(re.sub(r"\n{3,}", "\n\n", markdown.strip()))
