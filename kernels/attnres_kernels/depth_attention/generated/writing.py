"""Pieces of Triton text that all kernels are written with."""

from __future__ import annotations

from collections.abc import Iterable


def lines(statements: Iterable[str], indent: int) -> str:
    """The statements, one below the other; the first one stands where the text is put in."""
    return f"\n{' ' * indent}".join(statements)


def load(pointer: str, stride: str, name: str) -> str:
    """Load the tile at ``row`` and ``column`` in fp32; zero outside."""
    at = f"row[:, None] * {stride} + column[None, :]"
    return f"{name} = tl.load({pointer} + {at}, mask=inside, other=0.0).to(tl.float32)"


def load_again(pointer: str, stride: str, name: str) -> str:
    """Load a tile a second time instead of holding it; a compiler cannot tell, for ``zero``."""
    return load(f"{pointer} + zero", stride, name)


def over_rows(tiles: str, start: Iterable[str], loop: Iterable[str], end: Iterable[str]) -> str:
    """The body of a kernel whose programs go over rows of their own: ``start``, the loop, ``end``.

    In the loop are ``row``, ``column``, ``is_row``, ``is_column``, ``inside`` and ``at``, and after
    it ``program``, ``column`` and ``is_column``. tiles: text of the number of the tile along the width.

    ``zero`` is 0 at run time, which a compiler does not know: so it cannot move addresses and loads of vectors out of
    the loop, of which there are far more than registers. They are cheap to make, and in the cache.
    """
    return f"""\
    program = tl.program_id(0).to(tl.int64)
    {lines(start, 4)}
    for step in range(0, rows_per_program, BLOCK_T):
        row = program * rows_per_program + (step | zero) + tl.arange(0, BLOCK_T)
        column = {tiles} * BLOCK_D + tl.multiple_of(step & zero, 16) + tl.arange(0, BLOCK_D)
        is_row, is_column = row < rows, column < width
        inside = is_row[:, None] & is_column[None, :]
        at = row[:, None] * width + column[None, :]
        {lines(loop, 8)}
    column = {tiles} * BLOCK_D + tl.arange(0, BLOCK_D)
    is_column = column < width
    {lines(end, 4)}
"""


def load_vector(pointer: str, name: str) -> str:
    """Load the columns of a vector in fp32; zero outside."""
    return f"{name} = tl.load({pointer} + column, mask=is_column, other=0.0).to(tl.float32)"
