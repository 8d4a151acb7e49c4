"""Numbers of repeated things in few characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def progression(numbers: Sequence[int]) -> str:
    """An arithmetic progression: ``1-35``, or ``0,2..70`` with another step; equal numbers as one."""
    if len(set(numbers)) == 1:
        return str(numbers[0])
    if numbers[1] - numbers[0] == 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return f"{numbers[0]},{numbers[1]}" + (f"..{numbers[-1]}" if len(numbers) > 2 else "")


def span(numbers: Iterable[int | None]) -> str:
    """From the least to the most: ``2-9``; '' of nothing."""
    known = sorted({number for number in numbers if number is not None})
    if not known:
        return ""
    return str(known[0]) if len(known) == 1 else f"{known[0]}-{known[-1]}"
