"""The check, before every step of an optimizer, that the step trains the rewrite and not the plain model.

What a step is held to, for each prepared model that it holds parameters of:

- The model has not run plain by mistake since the last step: its own counts (``model.attnres.calls``) tell. Plain on
  purpose, inside ``attnres_compile.plain(model)``, is allowed, and asks nothing of the optimizer.
- Some optimizer holds the AttnRes parameters, unless all of them are frozen.
- Where nothing was counted since the last step, the gradients come from elsewhere and tell themselves: the AttnRes
  parameters have some if the rest of the model has. Gradients that are zeros (``zero_grad(set_to_none=False)``) are
  gradients.

Several ranks decide alike, so that none waits for one that has failed: by counts and by who holds what, never by
gradients, which a shard that is empty has none of.

Out of reach: optimizers that are no ``torch.optim.Optimizer`` or that step copies of the parameters (fp32 master
weights), since torch calls no hook for the ones and the others hold no parameter of the model; and, inside
``torch.compile``, a step that is no torch optimizer's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from operator import call, is_
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from attnres_compile.model import parameters
from attnres_compile.model.calls import Calls
from attnres_compile.model.errors import OptimizerError
from attnres_compile.model.parameters import AttnResParameters, KeyNorm, ReadParameters

Reference = Callable[[], nn.Parameter | None]
"""A weak reference: an id would be another parameter's once this one is gone."""

_watching = False


def watch_optimizers() -> None:
    """From now on, an optimizer that steps a prepared model without its rewrite is an error, at every step."""
    global _watching
    if not _watching:
        register_optimizer_step_pre_hook(_before_step)
        _watching = True


class _Registered:
    """The AttnRes parameters that were registered on one model when they were last looked at.

    places: the dictionary and the name of every parameter there is to be, and what it held: nothing after FSDP has
    moved it into a FlatParameter; holders: the optimizers that hold one of them or more.
    """

    def __init__(self, added: AttnResParameters) -> None:
        names = {ReadParameters: "query", KeyNorm: "weight"}
        self.places: list[tuple[dict[str, nn.Parameter | None], str, Reference]] = [
            (module._parameters, name, _reference(module._parameters.get(name)))
            for module in added.modules()
            if (name := names.get(type(module), ""))
        ]
        self.holders: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def is_current(self) -> bool:
        """Whether all of them are where they were; ``to_empty`` and whoever assigns one put others there."""
        return all(place.get(name) is reference() for place, name, reference in self.places)

    def alive(self) -> Iterator[nn.Parameter]:
        """In the order of the reads; empty if a FlatParameter holds them."""
        return _alive(reference for _, _, reference in self.places)


class _Held:
    """The parameters that one optimizer held when its groups were last looked at.

    A group is taken for what it was while its length and both ends are the same: to compare all parameters would be
    most of what the check costs.
    """

    def __init__(self, groups: list[list[nn.Parameter]]) -> None:
        self.references = list(map(_reference, chain.from_iterable(groups)))
        self.lengths = list(map(len, groups))
        self.ends = list(map(_reference, _ends(groups)))

    def is_current(self, groups: list[list[nn.Parameter]]) -> bool:
        """Whether the groups of the optimizer are what they were."""
        return self.lengths == list(map(len, groups)) and all(map(is_, map(call, self.ends), _ends(groups)))

    def among(self, ids: set[int]) -> list[Reference]:
        """Those of them that ``ids`` names."""
        return [reference for reference in self.references if id(reference()) in ids]


@dataclass
class _Link:
    """One optimizer and one model.

    registered, held: of the model and of the optimizer, that ``ours`` and ``others`` are for; ours, others: the
    AttnRes parameters and the model's own that the optimizer holds; rewritten, plain_on_purpose, plain: the model's
    counts at the last step that was in order; without: steps that nobody held the AttnRes parameters at.
    """

    registered: _Registered
    held: _Held
    ours: list[Reference]
    others: list[Reference]
    rewritten: int = 0
    plain_on_purpose: int = 0
    plain: int = 0
    without: int = 0


@dataclass
class _Watched:
    """What is known of one model.

    links: by optimizer; plain: the model's count at the last step in order of any optimizer; refused_plain,
    refused_runs: its counts of plain runs and of all others at the last step that was refused for a plain run.
    """

    registered: _Registered
    links: weakref.WeakKeyDictionary[Optimizer, _Link]
    plain: int = 0
    refused_plain: int = 0
    refused_runs: int = 0

    def refuse(self, calls: Calls) -> None:
        """Until the model runs as it should, the gradients of the plain run are there, for whoever steps them."""
        self.refused_plain, self.refused_runs = calls.plain, calls.rewritten + calls.plain_on_purpose

    def forgiven(self, calls: Calls) -> int:
        """How many plain runs count no longer, since the error has been told and the model has run after it."""
        return self.refused_plain if calls.rewritten + calls.plain_on_purpose > self.refused_runs else 0


_watched: weakref.WeakKeyDictionary[AttnResParameters, _Watched] = weakref.WeakKeyDictionary()
_held: weakref.WeakKeyDictionary[Optimizer, _Held] = weakref.WeakKeyDictionary()


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """The hook: Dynamo breaks the graph at the check, as it does in the step of each of torch's optimizers anyway.

    Another optimizer's step may be one graph (``fullgraph=True``), which the check must not break.
    """
    if torch.compiler.is_compiling() and not type(optimizer).__module__.startswith("torch."):
        return
    _check_step(optimizer)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _check_step(optimizer: Optimizer) -> None:
    """Raises OptimizerError for the first model that the step would train without its rewrite."""
    models = parameters.prepared_models()
    if not models:
        return
    held = _held_by(optimizer)
    for model in models:
        added = parameters.require_parameters(model)
        watched, link = _link(optimizer, model, added, held)
        if link.ours or link.others:
            _check_model(optimizer, model, added.calls, watched, link)


def _held_by(optimizer: Optimizer) -> _Held:
    """What the optimizer holds: the same object as at its last step if those are the same parameters."""
    groups = [group["params"] for group in optimizer.param_groups]
    held = _held.get(optimizer)
    if held is None or not held.is_current(groups):
        held = _held[optimizer] = _Held(groups)
    return held


def _link(optimizer: Optimizer, model: nn.Module, added: AttnResParameters, held: _Held) -> tuple[_Watched, _Link]:
    """What is known of a model and of the optimizer's part in it, up to date.

    Args:
        optimizer: about to step.
        model: prepared.
        added: to the model.
        held: by the optimizer.
    """
    watched = _watched.get(added)
    if watched is None:
        watched = _watched[added] = _Watched(_Registered(added), weakref.WeakKeyDictionary())
    elif not watched.registered.is_current():
        watched.registered = _Registered(added)
    registered, link = watched.registered, watched.links.get(optimizer)
    if link is not None and link.registered is registered and link.held is held:
        return watched, link
    own = set(map(id, registered.alive()))
    others = set(map(id, model.parameters())) - own
    now = _Link(registered, held, held.among(own), held.among(others), plain=watched.plain)
    if link is not None:
        without = link.without if link.registered is registered else 0
        now = replace(link, registered=registered, held=held, ours=now.ours, others=now.others, without=without)
    watched.links[optimizer] = now
    if now.ours:
        registered.holders.add(optimizer)
    else:
        registered.holders.discard(optimizer)
    return watched, now


def _check_model(optimizer: Optimizer, model: nn.Module, calls: Calls, watched: _Watched, link: _Link) -> None:
    """One step and one model that it holds parameters of.

    Args:
        optimizer: about to step.
        model: prepared.
        calls: of the model, counted until now.
        watched, link: what is known of it, and of the optimizer's part in it.

    Raises:
        OptimizerError: the step trains the plain model, or no optimizer holds the AttnRes parameters.
    """
    rewritten = calls.rewritten > link.rewritten
    on_purpose = calls.plain_on_purpose > link.plain_on_purpose
    if calls.plain > max(link.plain, watched.forgiven(calls)) and _steps(link.ours + link.others):
        watched.refuse(calls)
        raise OptimizerError(_ran_plain(optimizer, model, "which has run plain since the last step"))
    link.rewritten, link.plain_on_purpose, link.plain = calls.rewritten, calls.plain_on_purpose, calls.plain
    watched.plain = calls.plain
    if on_purpose and not rewritten:
        return
    if not rewritten and _gradients_tell_plain(model, link):
        raise OptimizerError(_ran_plain(optimizer, model, "whose AttnRes parameters have no gradients"))
    if link.others and not link.ours:
        _check_held(optimizer, model, link)


def _steps(held: list[Reference]) -> bool:
    """Whether there is something to step; on one of several ranks, whether there is on any."""
    return _is_one_of_several() or any(parameter.grad is not None for parameter in _alive(held))


def _gradients_tell_plain(model: nn.Module, link: _Link) -> bool:
    """Whether gradients that no counted run has made are those of a plain run.

    They are not where they come from another prepared model that shares the parameters, nor where all are zeros, as
    torch.distributed.checkpoint makes them to have an optimizer make its state.
    """
    if _is_one_of_several():
        return False
    if not any(parameter.requires_grad for parameter in link.registered.alive()):
        return False
    if any(parameter.grad is not None for parameter in link.registered.alive() if parameter.requires_grad):
        return False
    stepped = [parameter for parameter in _alive(link.others) if parameter.grad is not None]
    if not stepped:
        return False
    shared = {id(parameter) for other in _others_that_ran(model) for parameter in other.parameters()}
    return any(id(parameter) not in shared and _is_nonzero(parameter.grad) for parameter in stepped)


def _check_held(optimizer: Optimizer, model: nn.Module, link: _Link) -> None:
    """That some optimizer holds the AttnRes parameters of a model that this one holds other parameters of.

    One that holds all others is the only one, so that its first step tells. One that holds a part may have another
    beside it that holds ours, which has stepped by the time of its second step.

    Raises:
        OptimizerError: none does.
    """
    ours = [parameter for parameter in link.registered.alive() if parameter.requires_grad]
    if not ours or link.registered.holders:
        return
    own = set(map(id, link.registered.alive()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]
    stepped = [parameter for parameter in _alive(link.others) if parameter.requires_grad]
    link.without += 1
    if not stepped or (len(stepped) < len(trained) and link.without == 1):
        return
    raise OptimizerError(
        f"{type(optimizer).__name__} steps {type(model).__name__} without its {len(ours)} AttnRes parameters, which "
        "would stay as they are; make the optimizer after attnres_compile.prepare(model, ..), or call "
        "optimizer.add_param_group({'params': list(model.attnres.parameters()), 'weight_decay': 0.0}). If another "
        "optimizer holds them, step that one first; to keep them as they are, call "
        "model.attnres.requires_grad_(False) before compiling."
    )


def _ran_plain(optimizer: Optimizer, model: nn.Module, how: str) -> str:
    return (
        f"{type(optimizer).__name__} steps {type(model).__name__}, {how}: it ran without its depth attention. Compile "
        'it with model.compile(backend="attnres"); if it is, a graph break keeps Dynamo from compiling its forward, '
        "and torch.compile(model, fullgraph=True) names the line. Run what is to be plain inside "
        "attnres_compile.plain(model); to train the plain model for good, call attnres_compile.unprepare(model)."
    )


def _others_that_ran(model: nn.Module) -> list[nn.Module]:
    """Prepared models but this one that have run as they should."""
    others = [other for other in parameters.prepared_models() if other is not model]
    counts = [parameters.require_parameters(other).calls for other in others]
    return [other for other, calls in zip(others, counts, strict=True) if calls.rewritten or calls.plain_on_purpose]


def _is_one_of_several() -> bool:
    """Whether this process is one of several ranks."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _is_nonzero(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())


def _ends(groups: list[list[nn.Parameter]]) -> list[nn.Parameter]:
    return [end for group in groups if group for end in (group[0], group[-1])]


def _alive(references: Iterable[Reference]) -> Iterator[nn.Parameter]:
    return (parameter for reference in references if (parameter := reference()) is not None)


def _reference(parameter: nn.Parameter | None) -> Reference:
    return _nothing if parameter is None else weakref.ref(parameter)


def _nothing() -> None:
    """A reference to no parameter."""
