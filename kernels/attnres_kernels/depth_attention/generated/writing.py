"""Pieces of Triton text that all kernels are written with."""

from __future__ import annotations

from collections.abc import Iterable


def lines(statements: Iterable[str], indent: int) -> str:
    """The statements, one below the other; the first one stands where the text is put in."""
    return f"\n{' ' * indent}".join(statements)


ROW = "row = tl.program_id(0).to(tl.uint32).to(tl.int64)"
"""The row of a program that has one. That it is not negative spares the compiler the upper half of products."""


def along(stride: str) -> str:
    """The offset of ``row``, of which neither factor is negative."""
    return f"row * tl.cast({stride}, tl.uint32)"


def load(pointer: str, stride: str, name: str) -> str:
    """Load the tile at ``row`` and ``column`` in fp32; zero outside."""
    return load_vector(f"{pointer} + {along(stride)}", name)


def load_again(pointer: str, stride: str, name: str) -> str:
    """Load a tile a second time instead of holding it; a compiler cannot tell, for ``zero``."""
    return load(f"{pointer} + zero", stride, name)


def load_vector(pointer: str, name: str) -> str:
    """Load the columns of a vector in fp32; zero outside."""
    return f"{name} = tl.load({pointer} + column, mask=inside, other=0.0).to(tl.float32)"


def store(pointer: str, value: str) -> str:
    """Store a tile, rounded to what is stored."""
    return f"tl.store({pointer} + {along('width')} + column, {value}.to({pointer}.dtype.element_ty), mask=inside)"


def over_rows(tiles: str, start: Iterable[str], loop: Iterable[str], end: Iterable[str]) -> str:
    """The body of a kernel whose programs go over rows of their own: ``start``, the loop, ``end``.

    In the loop are ``row``, ``column`` and ``inside``, and before and after it ``program``, ``column`` and ``inside``.
    tiles: text of the number of the tile along the width.

    ``zero`` is 0 at run time, which a compiler does not know: so it cannot move addresses and loads of vectors out of
    the loop, of which there are far more than registers. They are cheap to make, and in the cache.
    """
    columns = [f"column = {tiles} * BLOCK_D + tl.arange(0, BLOCK_D)", "inside = column < width"]
    return f"""\
    program = tl.program_id(0).to(tl.int64)
    first = tl.program_id(0) * rows_per_program
    {lines([*columns, *start], 4)}
    for step in range(0, tl.minimum(rows_per_program, rows - first)):
        row = (first + (step | zero)).to(tl.uint32).to(tl.int64)
        column = {tiles} * BLOCK_D + tl.multiple_of(step & zero, 16) + tl.arange(0, BLOCK_D)
        inside = column < width
        {lines(loop, 8)}
    {lines([*columns, *end], 4)}
"""
