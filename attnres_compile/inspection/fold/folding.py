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

from attnres_compile.inspection.facts.facts import Inspection, Site, StreamFacts
from attnres_compile.inspection.fold.layers import (
    EXPAND_ALL,
    Layer,
    Row,
    label_of,
    lies_in,
    moving,
    prefixes,
    step,
    template,
)
from attnres_kernels.errors import AttnResError

LONGEST_UNIT = 256
"""Rows of a unit; more are not folded."""


class ExpandError(AttnResError, ValueError):
    """No stream has a layer of this name."""


@dataclass(frozen=True)
class FoldedStream:
    """A stream, and its sites as layers."""

    facts: StreamFacts
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class FoldedInspection:
    """The facts of a model, and its streams folded."""

    facts: Inspection
    streams: tuple[FoldedStream, ...]


def fold_streams(inspection: Inspection, expand: Collection[str] = ()) -> FoldedInspection:
    """Fold the repeated layers of all streams.

    Args:
        inspection: of the model.
        expand: layers that are not folded into their neighbours: their paths, numbers, or "all".

    Raises:
        ExpandError: no stream has such a layer.
    """
    check_expand([stream.sites for stream in inspection.streams], expand)
    streams = tuple(FoldedStream(stream, fold(stream.sites, expand)) for stream in inspection.streams)
    return FoldedInspection(inspection, streams)


def fold(sites: Sequence[Site], expand: Collection[str] = ()) -> tuple[Layer, ...]:
    """The sites of one stream as layers, repeated ones folded, but for those that ``expand`` names.

    Args:
        sites: in the order of the graph.
        expand: paths of layers (``transformer.h.3``), their ends (``h.3``), their numbers (``3``), or "all".
    """
    layers: list[Layer] = []
    for single in _joined(_runs(sites, _is_one_layer, shortest=True)):
        rest = [row.first for row in single.rows]
        layers.extend([single] if single.is_folded else _joined(_runs(rest, _begins_with_a_read, shortest=False)))
    found = (container_of(row) for layer in layers if layer.is_folded for row in layer.rows)
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
        label = next((label for one in containers if (label := within(row.first.module, one))), "")
        if named and named[-1].label == label:
            named[-1] = Layer((*named[-1].rows, row), label=label)
        else:
            named.append(Layer((row,), label=label))
    return named


def check_expand(streams: Sequence[Sequence[Site]], expand: Collection[str]) -> None:
    """Check the names that a user gives.

    Args:
        streams: the sites of each stream of the model.
        expand: what ``fold`` is given for each of them.

    Raises:
        ExpandError: no stream has a layer of such a name.
    """
    for name in expand:
        sites = (site for stream in streams for site in stream)
        if name == EXPAND_ALL or any(lies_in(site.module, name) for site in sites):
            continue
        labels = [layer.label for stream in streams for layer in fold(stream) if layer.is_folded]
        known = f"folded are {', '.join(labels)}" if labels else "nothing is folded"
        raise ExpandError(f"--expand {name}: no stream goes through a layer of that name; {known}, or give 'all'.")


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
    layer = Layer(rows, len(rows[0].sites), label_of([(row, slice(None)) for row in rows]))
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
    steps = [step(sites[k].module, sites[k + period].module) for k in unit]
    end = first + period
    while end + period <= len(sites) and None not in steps:
        before = end - period
        same = all(
            keys[before + k] == keys[end + k] and step(sites[before + k].module, sites[end + k].module) == steps[k]
            for k in range(period)
        )
        if not same:
            break
        end += period
    return tuple(Row(tuple(sites[k:end:period])) for k in unit)


def _is_one_layer(rows: Sequence[Row]) -> bool:
    """Whether the paths that move on hold the same numbers: those of one layer."""
    paths = [prefixes(row) for row in rows if moving(row) is not None]
    numbers = {tuple(path.rpartition(".")[2] for path in of_row) for of_row in paths}
    return len(numbers) == 1


def _begins_with_a_read(rows: Sequence[Row]) -> bool:
    """Whether a unit may be layers: they read before they write."""
    return rows[0].first.kind == "read" or all(row.first.kind == "write" for row in rows)


def _key(site: Site) -> tuple[object, ...]:
    """What is the same in repeated layers."""
    return site.kind, site.source, site.normed, template(site.module), template(site.query)


def container_of(row: Row) -> tuple[str, ...] | None:
    """The path of a layer without its numbers: ``layers.#.blocks.#``."""
    return None if moving(row) is None else template(prefixes(row)[0])


def within(module: str, container: tuple[str, ...]) -> str:
    """The layer of a container that a path lies in; '' if it is in none."""
    path = module.split(".")[: len(container)]
    return ".".join(path) if template(".".join(path)) == container else ""
