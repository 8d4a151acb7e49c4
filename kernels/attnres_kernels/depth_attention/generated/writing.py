"""Pieces of Triton text that all kernels are written with."""

from __future__ import annotations

from collections.abc import Iterable


def lines(statements: Iterable[str], indent: int) -> str:
    """The statements, one below the other; the first one stands where the text is put in."""
    return f"\n{' ' * indent}".join(statements)


def load(pointer: str, stride: str, name: str) -> str:
    """Load the tile at ``row`` and ``column`` in fp32; zero outside."""
    return (
        f"{name} = tl.load({pointer} + row[:, None] * {stride} + column[None, :], "
        "mask=inside, other=0.0).to(tl.float32)"
    )
