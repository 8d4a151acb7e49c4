"""Layers of a stream as they are shown: rows of sites, and how several repetitions are written as one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from attnres_compile.inspection.facts.facts import Border, Site
from attnres_passes.ir.provenance import common_prefix

EXPAND_ALL = "all"


@dataclass(frozen=True)
class Row:
    """One site of each repetition of a layer."""

    sites: tuple[Site, ...]

    @property
    def first(self) -> Site:
        return self.sites[0]

    @property
    def module(self) -> str:
        """Path with the range of its layers: ``h.1-11.ln_1``."""
        return _joined_path([site.module for site in self.sites])

    @property
    def block(self) -> str:
        return _span(site.block for site in self.sites)

    @property
    def sources(self) -> str:
        return _span(site.sources for site in self.sites)

    @property
    def stage(self) -> str:
        return _span(site.stage for site in self.sites)

    @property
    def query(self) -> str:
        """With # in place of numbers of modules that differ."""
        texts = list(dict.fromkeys(site.query for site in self.sites))
        return texts[0] if len(texts) == 1 else ".".join(template(texts[0]))

    @property
    def schedule(self) -> str:
        return ", ".join(dict.fromkeys(site.schedule for site in self.sites if site.schedule))

    @property
    def shape(self) -> str:
        return ", ".join(dict.fromkeys(site.shape for site in self.sites))

    @property
    def borders(self) -> tuple[Border, ...]:
        """Those that the stream crosses right before the sites."""
        return tuple(site.border for site in self.sites if site.border is not None)

    @property
    def border(self) -> str:
        """What begins or ends right before the sites; '' if nothing does."""
        return " / ".join(dict.fromkeys(border.what for border in self.borders))

    @property
    def crossing(self) -> str:
        """What crosses there: ``b0..b2``, the partial sum with them if one is open, or the least and the most."""
        blocks = _span(border.blocks - 1 for border in self.borders)
        partial = {border.has_partial for border in self.borders}
        also = "" if partial == {False} else " + partial sum" if partial == {True} else " (+ partial sum)"
        return f"b0..b{f'({blocks})' if '-' in blocks else blocks}{also}" if blocks != "0" else f"b0{also}"


@dataclass(frozen=True)
class Layer:
    """Consecutive rows. repeats: layers folded into them; label: their paths, ``transformer.h.1-11``, '' of others."""

    rows: tuple[Row, ...]
    repeats: int = 1
    label: str = ""

    @property
    def is_folded(self) -> bool:
        return self.repeats > 1

    def unfolded(self) -> tuple[Layer, ...]:
        """Each repetition by itself."""
        return tuple(self.part(index, index + 1) for index in range(self.repeats))

    def part(self, first: int, end: int) -> Layer:
        """Some of the repetitions.

        Args:
            first, end: from this one, up to but without that one.
        """
        label = label_of([(row, slice(first, end)) for row in self.rows])
        return Layer(tuple(Row(row.sites[first:end]) for row in self.rows), end - first, label)

    def split(self, expand: Collection[str]) -> tuple[Layer, ...]:
        """With the repetitions that ``expand`` names by themselves."""
        if not self.is_folded:
            return (self,)
        parts: list[Layer] = []
        first = 0
        for index in range(self.repeats):
            if any(self._is_named(index, name) for name in expand):
                parts.extend(self.part(*ends) for ends in ((first, index), (index, index + 1)) if ends[0] < ends[1])
                first = index + 1
        return (*parts, *([self.part(first, self.repeats)] if first < self.repeats else []))

    def _is_named(self, index: int, name: str) -> bool:
        if name == EXPAND_ALL:
            return True
        if name.isdecimal():
            return any(prefixes(row)[index].split(".")[-1] == name for row in self.rows if moving(row) is not None)
        return any(lies_in(row.sites[index].module, name) for row in self.rows)


def lies_in(module: str, name: str) -> bool:
    """Whether a path goes through a layer.

    Args:
        module: the path.
        name: components that follow one another in it.
    """
    return f".{name}." in f".{module}."


def step(one: str, other: str) -> tuple[int, int] | None:
    """How a path moves on from one repetition to the next.

    Args:
        one, other: paths that differ in numbers alone.

    Returns:
        Which part moves on, and by how much; (-1, 0) of equal paths; None if several parts differ.
    """
    if one == other:
        return -1, 0
    pairs = zip(one.split("."), other.split("."), strict=True)
    differing = [(index, int(b) - int(a)) for index, (a, b) in enumerate(pairs) if a != b]
    return differing[0] if len(differing) == 1 else None


def moving(row: Row) -> int | None:
    """The part of the path that differs between the repetitions of a row."""
    if len(row.sites) < 2:
        return None
    found = step(row.sites[0].module, row.sites[1].module)
    return None if found is None or found[0] < 0 else found[0]


def prefixes(row: Row) -> list[str]:
    """Each repetition's path up to the number that differs."""
    at = moving(row)
    assert at is not None
    return [".".join(site.module.split(".")[: at + 1]) for site in row.sites]


def label_of(parts: Sequence[tuple[Row, slice]]) -> str:
    """The paths of some repetitions of a folded layer."""
    if len(parts[0][0].sites) < 2:
        return ""
    paths = dict.fromkeys(_joined_path(prefixes(row)[part]) for row, part in parts if moving(row) is not None)
    return ", ".join(paths) or common_prefix([row.first.module for row, _ in parts])


def _joined_path(paths: Sequence[str]) -> str:
    parts = []
    for column in zip(*(path.split(".") for path in paths), strict=True):
        differs = len(set(column)) > 1
        parts.append(_progression([int(part) for part in column]) if differs else column[0])
    return ".".join(parts)


def _progression(numbers: Sequence[int]) -> str:
    """An arithmetic progression: ``1-35``, or ``0,2..70`` with another step; equal numbers as one."""
    if len(set(numbers)) == 1:
        return str(numbers[0])
    if numbers[1] - numbers[0] == 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return f"{numbers[0]},{numbers[1]}" + (f"..{numbers[-1]}" if len(numbers) > 2 else "")


def _span(numbers: Iterable[int | None]) -> str:
    """From the least to the most: ``2-9``; '' of nothing."""
    known = sorted({number for number in numbers if number is not None})
    if not known:
        return ""
    return str(known[0]) if len(known) == 1 else f"{known[0]}-{known[-1]}"


def template(path: str) -> tuple[str, ...]:
    """The parts of a path, or of a text with one in it, with # in place of numbers."""
    return tuple("#" if part.isdecimal() else part for part in path.split("."))
