"""Repeated layers as one: consecutive layers whose sites differ in the number of the layer alone.

Nothing is known of models but that a module's path may hold numbers. A unit of rows repeats if the next as many rows
are of the same kinds, source lines and paths, with at most one number in each path moved on by the same step as before.
First units are found that are one layer, with one number in all their paths (``layers.2.blocks.0`` on to
``layers.2.blocks.1``), so that units begin where layers do; then, in what is left, any others: layers that alternate,
sublayers in lists of their own, one layer applied again and again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from attnres_compile.inspection.facts import Site
from attnres_compile.inspection.ranges import progression, span
from attnres_kernels.errors import AttnResError
from attnres_passes.provenance import common_prefix

EXPAND_ALL = "all"
LONGEST_UNIT = 256
"""Rows of a unit; more are not folded."""


class ExpandError(AttnResError, ValueError):
    """No stream has a layer of this name."""


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
        return span(site.block for site in self.sites)

    @property
    def sources(self) -> str:
        return span(site.sources for site in self.sites)

    @property
    def stage(self) -> str:
        return span(site.stage for site in self.sites)

    @property
    def schedule(self) -> str:
        return ", ".join(dict.fromkeys(site.schedule for site in self.sites if site.schedule))

    @property
    def shape(self) -> str:
        return ", ".join(dict.fromkeys(site.shape for site in self.sites))


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
        """Repetitions ``first .. end``."""
        label = _label([(row, slice(first, end)) for row in self.rows])
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
            return any(_prefixes(row)[index].split(".")[-1] == name for row in self.rows if _moving(row) is not None)
        return any(_lies_in(row.sites[index].module, name) for row in self.rows)


def fold(sites: Sequence[Site], expand: Collection[str] = ()) -> tuple[Layer, ...]:
    """The sites of one stream as layers, repeated ones folded, but for those that ``expand`` names.

    Args:
        expand: paths of layers (``transformer.h.3``), their ends (``h.3``), their numbers (``3``), or "all".
    """
    layers: list[Layer] = []
    for single in _joined(_runs(sites, _is_one_layer, shortest=True)):
        rest = [row.first for row in single.rows]
        layers.extend([single] if single.is_folded else _joined(_runs(rest, _begins_with_a_read, shortest=False)))
    found = (_container(row) for layer in layers if layer.is_folded for row in layer.rows)
    containers = [one for one in dict.fromkeys(found) if one is not None]
    return tuple(
        part
        for layer in layers
        for part in (layer.split(expand) if layer.is_folded else _named_layers(layer.rows, containers))
    )


def _joined(layers: Iterable[Layer]) -> list[Layer]:
    """Neighbours that are not folded as one."""
    joined: list[Layer] = []
    for layer in layers:
        if joined and not layer.is_folded and not joined[-1].is_folded:
            joined[-1] = Layer((*joined[-1].rows, *layer.rows))
        else:
            joined.append(layer)
    return joined


def _named_layers(rows: Sequence[Row], containers: Sequence[tuple[str, ...]]) -> list[Layer]:
    """Rows that do not repeat, by the layers they are in, such as a first one that differs from the others."""
    named: list[Layer] = []
    for row in rows:
        label = next((label for one in containers if (label := _within(row.first.module, one))), "")
        if named and named[-1].label == label:
            named[-1] = Layer((*named[-1].rows, row), label=label)
        else:
            named.append(Layer((row,), label=label))
    return named


def check_expand(streams: Sequence[Sequence[Site]], expand: Collection[str]) -> None:
    """Raise ExpandError for a layer that no stream has."""
    for name in expand:
        sites = (site for stream in streams for site in stream)
        if name == EXPAND_ALL or any(_lies_in(site.module, name) for site in sites):
            continue
        labels = [layer.label for stream in streams for layer in fold(stream) if layer.is_folded]
        known = f"folded are {', '.join(labels)}" if labels else "nothing is folded"
        raise ExpandError(f"--expand {name}: no stream goes through a layer of that name; {known}, or give 'all'.")


def _lies_in(module: str, name: str) -> bool:
    """Whether the components of ``name`` follow one another in a path."""
    return f".{name}." in f".{module}."


def _runs(sites: Sequence[Site], accepts: Callable[[Sequence[Row]], bool], shortest: bool) -> list[Layer]:
    """From each site on, a unit that repeats: the shortest, or the one that covers most sites.

    Sites that are in no unit are layers that are not folded. A first repetition whose reads have one source, and so are
    no depth attentions, stands by itself.
    """
    keys = [_key(site) for site in sites]
    places: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    found: list[Layer] = []
    first = 0
    while first < len(sites):
        best: tuple[Row, ...] = (Row((sites[first],)),)
        for place in places[keys[first]]:
            period = place - first
            if 0 < period <= LONGEST_UNIT and keys[first:place] == keys[place : place + period]:
                rows = _repeated(sites, keys, first, period)
                if _covered(rows) > max(period, _covered(best)) and accepts(rows):
                    best = rows
                    if shortest:
                        break
        found.extend(_layers_of(best))
        first += _covered(best)
    return found


def _layers_of(rows: tuple[Row, ...]) -> Iterator[Layer]:
    """A unit as a folded layer, the first repetition apart if its reads differ from the others'."""
    layer = Layer(rows, len(rows[0].sites), _label([(row, slice(None)) for row in rows]))
    differs = layer.is_folded and any(_is_deep(row.sites[0]) != _is_deep(row.sites[1]) for row in rows)
    if differs:
        yield layer.part(0, 1)
        yield layer.part(1, layer.repeats)
    else:
        yield layer


def _is_deep(site: Site) -> bool:
    return (site.sources or 0) > 1


def _covered(rows: Sequence[Row]) -> int:
    return len(rows) * len(rows[0].sites)


def _repeated(sites: Sequence[Site], keys: Sequence[object], first: int, period: int) -> tuple[Row, ...]:
    """The rows of the unit ``first .. first + period``, as long as it repeats."""
    unit = range(first, first + period)
    steps = [_step(sites[k].module, sites[k + period].module) for k in unit]
    end = first + period
    while end + period <= len(sites) and None not in steps:
        before = end - period
        same = all(
            keys[before + k] == keys[end + k] and _step(sites[before + k].module, sites[end + k].module) == steps[k]
            for k in range(period)
        )
        if not same:
            break
        end += period
    return tuple(Row(tuple(sites[k:end:period])) for k in unit)


def _is_one_layer(rows: Sequence[Row]) -> bool:
    """Whether the paths that move on hold the same numbers: those of one layer."""
    prefixes = [_prefixes(row) for row in rows if _moving(row) is not None]
    numbers = {tuple(prefix.rpartition(".")[2] for prefix in of_row) for of_row in prefixes}
    return len(numbers) == 1


def _begins_with_a_read(rows: Sequence[Row]) -> bool:
    """Whether a unit may be layers: they read before they write."""
    return rows[0].first.kind == "read" or all(row.first.kind == "write" for row in rows)


def _key(site: Site) -> tuple[object, ...]:
    """What is the same in repeated layers."""
    return site.kind, site.source, site.normed, _template(site.module)


def _step(one: str, other: str) -> tuple[int, int] | None:
    """Which part of a path moves on, and by how much; (-1, 0) of equal paths; None if several parts differ."""
    if one == other:
        return -1, 0
    pairs = zip(one.split("."), other.split("."), strict=True)
    differing = [(index, int(b) - int(a)) for index, (a, b) in enumerate(pairs) if a != b]
    return differing[0] if len(differing) == 1 else None


def _moving(row: Row) -> int | None:
    """The part of the path that differs between the repetitions of a row."""
    if len(row.sites) < 2:
        return None
    step = _step(row.sites[0].module, row.sites[1].module)
    return None if step is None or step[0] < 0 else step[0]


def _prefixes(row: Row) -> list[str]:
    """Each repetition's path up to the number that differs."""
    at = _moving(row)
    assert at is not None
    return [".".join(site.module.split(".")[: at + 1]) for site in row.sites]


def _label(parts: Sequence[tuple[Row, slice]]) -> str:
    """The paths of some repetitions of a folded layer."""
    if len(parts[0][0].sites) < 2:
        return ""
    paths = dict.fromkeys(_joined_path(_prefixes(row)[part]) for row, part in parts if _moving(row) is not None)
    return ", ".join(paths) or common_prefix([row.first.module for row, _ in parts])


def _container(row: Row) -> tuple[str, ...] | None:
    """The path of a layer without its numbers: ``layers.#.blocks.#``."""
    return None if _moving(row) is None else _template(_prefixes(row)[0])


def _within(module: str, container: tuple[str, ...]) -> str:
    """The layer of a container that a path lies in; '' if it is in none."""
    path = module.split(".")[: len(container)]
    return ".".join(path) if _template(".".join(path)) == container else ""


def _template(path: str) -> tuple[str, ...]:
    return tuple("#" if part.isdecimal() else part for part in path.split("."))


def _joined_path(paths: Sequence[str]) -> str:
    parts = []
    for column in zip(*(path.split(".") for path in paths), strict=True):
        differs = len(set(column)) > 1
        parts.append(progression([int(part) for part in column]) if differs else column[0])
    return ".".join(parts)
