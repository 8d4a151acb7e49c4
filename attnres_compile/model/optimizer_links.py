"""Who holds which parameters: an optimizer and a prepared model, from one step to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import nn
from torch.optim.optimizer import Optimizer

from attnres_compile.model.in_force.calls import Calls
from attnres_compile.model.parameters import AttnResParameters
from attnres_compile.model.read_modules import KeyNorm, QueryProjection, ReadParameters

Reference = Callable[[], nn.Parameter | None]
"""A weak reference: an id would be another parameter's once this one is gone."""


K = TypeVar("K", Optimizer, AttnResParameters)
V = TypeVar("V")


class ByIdentity(Generic[K, V]):
    """Values by object, each for as long as its object lives.

    Looked up at every step of an optimizer, whose own work has pushed all of this out of the processor's caches: a
    WeakKeyDictionary, which makes a reference and calls back into Python to compare, takes five times as long there.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[K], V]] = {}

    def get(self, key: K) -> V | None:
        found = self._entries.get(id(key))
        return found[1] if found is not None and found[0]() is key else None

    def put(self, key: K, value: V) -> V:
        table, identity = weakref.ref(self), id(key)

        def forget(_: Any) -> None:
            if (found := table()) is not None:
                found._entries.pop(identity, None)

        self._entries[identity] = (weakref.ref(key, forget), value)
        return value

    def __len__(self) -> int:
        return len(self._entries)


class Registered:
    """The AttnRes parameters that were registered on one model when they were last looked at.

    places: the dictionary and the name of every parameter there is to be, and what it held: nothing after FSDP has
    moved it into a FlatParameter; holders: the optimizers that hold one of them or more.
    """

    def __init__(self, added: AttnResParameters) -> None:
        self.places: list[tuple[dict[str, nn.Parameter | None], str, Reference]] = [
            (module._parameters, name, _reference(module._parameters.get(name)))
            for module in added.modules()
            if isinstance(module, (ReadParameters, QueryProjection, KeyNorm))
            for name in module.own
        ]
        self.ends = [*self.places[:1], *self.places[-1:]]
        self.holders: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def is_current(self) -> bool:
        """Whether the first and the last are where they were; ``to_empty`` and whoever assigns all put others there.

        An optimizer that holds these two still holds some, whatever became of those between.
        """
        return all(place.get(name) is reference() for place, name, reference in self.ends)

    def alive(self) -> Iterator[nn.Parameter]:
        """In the order of the reads; empty if a FlatParameter holds them."""
        return alive(reference for _, _, reference in self.places)


class Held:
    """The parameters that one optimizer held when its groups were last looked at.

    A group is taken for what it was while its length and both ends are the same: to compare all parameters would be
    most of what the check costs.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self.references = [_reference(parameter) for group in groups for parameter in group["params"]]
        self.ends = [_ends(group["params"]) for group in groups]

    def is_current(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the groups of the optimizer are what they were."""
        if len(groups) != len(self.ends):
            return False
        for group, (length, first, last) in zip(groups, self.ends, strict=True):
            parameters = group["params"]
            if len(parameters) != length:
                return False
            if length and (parameters[0] is not first() or parameters[-1] is not last()):
                return False
        return True

    def among(self, ids: set[int]) -> list[Reference]:
        """Those of them that ``ids`` names."""
        return [reference for reference in self.references if id(reference()) in ids]


@dataclass
class Link:
    """One optimizer and one model.

    registered, held: of the model and of the optimizer, that ``ours`` and ``others`` are for; ours, others: the
    AttnRes parameters and the model's own that the optimizer holds; rewritten, plain_on_purpose, plain: the model's
    counts at the last step that was in order; without: steps that nobody held the AttnRes parameters at.
    """

    registered: Registered
    held: Held
    ours: list[Reference]
    others: list[Reference]
    rewritten: int = 0
    plain_on_purpose: int = 0
    plain: int = 0
    without: int = 0


@dataclass
class Watched:
    """What is known of one model.

    links: by optimizer; plain: the model's count at the last step in order of any optimizer; refused_plain,
    refused_runs: its counts of plain runs and of all others at the last step that was refused for a plain run.
    """

    registered: Registered
    links: ByIdentity[Optimizer, Link]
    plain: int = 0
    refused_plain: int = 0
    refused_runs: int = 0

    def refuse(self, calls: Calls) -> None:
        """Until the model runs as it should, the gradients of the plain run are there, for whoever steps them."""
        self.refused_plain, self.refused_runs = calls.plain, calls.rewritten + calls.plain_on_purpose

    def forgiven(self, calls: Calls) -> int:
        """How many plain runs count no longer, since the error has been told and the model has run after it."""
        return self.refused_plain if calls.rewritten + calls.plain_on_purpose > self.refused_runs else 0


_watched: ByIdentity[AttnResParameters, Watched] = ByIdentity()
_held: ByIdentity[Optimizer, Held] = ByIdentity()


def held_by(optimizer: Optimizer) -> Held:
    """What the optimizer holds: the same object as at its last step if those are the same parameters."""
    held = _held.get(optimizer)
    if held is None or not held.is_current(optimizer.param_groups):
        held = _held.put(optimizer, Held(optimizer.param_groups))
    return held


def link_of(optimizer: Optimizer, model: nn.Module, added: AttnResParameters, held: Held) -> tuple[Watched, Link]:
    """What is known of a model and of the optimizer's part in it, up to date.

    Args:
        optimizer: about to step.
        model: prepared.
        added: to the model.
        held: by the optimizer.
    """
    watched = _watched.get(added)
    if watched is None:
        watched = _watched.put(added, Watched(Registered(added), ByIdentity()))
    elif not watched.registered.is_current():
        watched.registered = Registered(added)
    registered, link = watched.registered, watched.links.get(optimizer)
    if link is not None and link.registered is registered and link.held is held:
        return watched, link
    own = set(map(id, registered.alive()))
    others = set(map(id, model.parameters())) - own
    now = Link(registered, held, held.among(own), held.among(others), plain=watched.plain)
    if link is not None:
        without = link.without if link.registered is registered else 0
        now = replace(link, registered=registered, held=held, ours=now.ours, others=now.others, without=without)
    watched.links.put(optimizer, now)
    if now.ours:
        registered.holders.add(optimizer)
    else:
        registered.holders.discard(optimizer)
    return watched, now


def _ends(group: Sequence[nn.Parameter]) -> tuple[int, Reference, Reference]:
    first, last = (group[0], group[-1]) if group else (None, None)
    return len(group), _reference(first), _reference(last)


def alive(references: Iterable[Reference]) -> Iterator[nn.Parameter]:
    """The parameters that are still there."""
    return (parameter for reference in references if (parameter := reference()) is not None)


def _reference(parameter: nn.Parameter | None) -> Reference:
    return _nothing if parameter is None else weakref.ref(parameter)


def _nothing() -> None:
    """A reference to no parameter."""
