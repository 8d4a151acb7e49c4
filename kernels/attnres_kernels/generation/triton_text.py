"""Pieces of Triton text that all kernels are written with."""

from __future__ import annotations

import re
from collections.abc import Iterable


def lines(statements: Iterable[str], indent: int) -> str:
    """The statements, one below the other; the first one stands where the text is put in.

    Args:
        statements: of Triton.
        indent: blanks before all others.
    """
    return f"\n{' ' * indent}".join(statements)


ROW = "row = tl.program_id(0).to(tl.uint32).to(tl.int64)"
"""The row of a program that has one. That it is not negative spares the compiler the upper half of products."""


def along(stride: str) -> str:
    """The offset of ``row``, of which neither factor is negative."""
    return f"row * tl.cast({stride}, tl.uint32)"


def load(pointer: str, stride: str, name: str) -> str:
    """Load the tile at ``row`` and ``column`` in fp32; zero outside.

    Args:
        pointer, stride: names of the tensor and of the stride of its rows.
        name: of the variable.
    """
    return f"{load_stored(pointer, stride, name)}.to(tl.float32)"


def load_stored(pointer: str, stride: str, name: str) -> str:
    """Load the tile at ``row`` and ``column`` as it is stored, in half the registers of fp32 where that is bf16.

    Args:
        pointer, stride, name: of ``load``.
    """
    return f"{name} = tl.load({pointer} + {along(stride)} + column, mask=inside, other=0.0)"


def load_again(pointer: str, stride: str, name: str) -> str:
    """Load a tile a second time instead of holding it; a compiler cannot tell, for ``zero``.

    Args:
        pointer, stride, name: of ``load``.
    """
    return load(f"{pointer} + zero", stride, name)


def load_vector(pointer: str, name: str) -> str:
    """Load the columns of a vector in fp32; zero outside.

    Args:
        pointer: name of the vector.
        name: of the variable.
    """
    return f"{name} = tl.load({pointer} + column, mask=inside, other=0.0).to(tl.float32)"


def load_in_cache(pointer: str) -> str:
    """The columns of a vector that all rows share, as they are stored, from the cache: there are no registers for them.

    A compiler that does not know ``zero`` does not hold their addresses either.
    """
    return f"tl.load({pointer} + tl.multiple_of(step & zero, 16) + column, mask=inside, other=0.0)"


def sum_together(sums: dict[str, str]) -> str:
    """Sums over a row by name, all in one exchange between warps, where each on its own would be one."""
    if len(sums) == 1:
        ((name, value),) = sums.items()
        return f"{name} = tl.sum({value})"
    return f"{', '.join(sums)} = tl.reduce(({', '.join(sums.values())}), 0, add_{len(sums)})"


def with_additions(kernel: str) -> str:
    """The kernel's text, and below it the functions that its ``sum_together`` name."""
    text = kernel
    for count in sorted({int(found) for found in re.findall(r"\badd_(\d+)\)", kernel)}):
        left, right = ([f"{side}_{i}" for i in range(count)] for side in ("left", "right"))
        added = ", ".join(f"{a} + {b}" for a, b in zip(left, right, strict=True))
        text += f"\n\n@triton.jit\ndef add_{count}({', '.join([*left, *right])}):\n    return {added}\n"
    return text


def store(pointer: str, value: str) -> str:
    """Store a tile, rounded to what is stored.

    Args:
        pointer: name of the tensor.
        value: of the tile.
    """
    return f"tl.store({pointer} + {along('width')} + column, {value}.to({pointer}.dtype.element_ty), mask=inside)"


def over_rows(
    tiles: str, start: Iterable[str], loop: Iterable[str], end: Iterable[str], stages: str | None = None
) -> str:
    """The body of a kernel whose programs go over rows of their own: ``start``, the loop, ``end``.

    In the loop are ``row``, ``column`` and ``inside``, and before and after it ``program``, ``column`` and ``inside``.

    ``zero`` is 0 at run time, which a compiler does not know: so it cannot move addresses and loads of vectors out of
    the loop, of which there are far more than registers. They are cheap to make, and in the cache.

    Args:
        tiles: text of the number of the tile along the width.
        start, loop, end: statements.
        stages: name of the constant that says in how many stages the loop is a pipeline: in all but the last one, tiles
            of rows are on their way into shared memory. All that the loop loads is copied so, but not what a condition
            guards.
    """
    steps = "0, tl.minimum(rows_per_program, rows - first)"
    steps = f"range({steps})" if stages is None else f"tl.range({steps}, num_stages={stages})"
    columns = [f"column = {tiles} * BLOCK_D + tl.arange(0, BLOCK_D)", "inside = column < width"]
    of_row = [
        "row = (first + (step | zero)).to(tl.uint32).to(tl.int64)",
        f"column = {tiles} * BLOCK_D + tl.multiple_of(step & zero, 16) + tl.arange(0, BLOCK_D)",
        "inside = column < width",
    ]
    if stages is not None:  # all that waits for a later stage would be held until then
        of_row = ["row = (first + step).to(tl.uint32).to(tl.int64)"]
    return f"""\
    program = tl.program_id(0).to(tl.int64)
    first = tl.program_id(0) * rows_per_program
    {lines([*columns, *start], 4)}
    for step in {steps}:
        {lines([*of_row, *loop], 8)}
    {lines([*columns, *end], 4)}
"""
