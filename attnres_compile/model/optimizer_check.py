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
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from attnres_compile.model import parameters
from attnres_compile.model.errors import OptimizerError
from attnres_compile.model.in_force.calls import Calls
from attnres_compile.model.optimizer_links import Link, Reference, Watched, alive, held_by, link_of

_watching = False
_chunks: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[nn.Module]]] = weakref.WeakKeyDictionary()
"""Of a model that was cut into a pipeline, the chunks of this rank."""


def watch_optimizers() -> None:
    """From now on, an optimizer that steps a prepared model without its rewrite is an error, at every step."""
    global _watching
    if not _watching:
        register_optimizer_step_pre_hook(_before_step)
        _watching = True


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """The hook: Dynamo breaks the graph at the check, as it does in the step of each of torch's optimizers anyway.

    Another optimizer's step may be one graph (``fullgraph=True``), which the check must not break.
    """
    if not torch.compiler.is_compiling():
        _check_step(optimizer)
    elif type(optimizer).__module__.startswith("torch."):
        _check_traced_step(optimizer)


def _check_step(optimizer: Optimizer) -> None:
    """Raises OptimizerError for the first model that the step would train without its rewrite."""
    models = parameters.prepared_models()
    if not models:
        return
    held = held_by(optimizer)
    for model, added in models:
        watched, link = link_of(optimizer, model, added, held)
        if link.ours or link.others:
            _check_model(optimizer, model, added.calls, watched, link)


_check_traced_step = torch.compiler.disable(_check_step)  # type: ignore[no-untyped-call]


def _check_model(optimizer: Optimizer, model: nn.Module, calls: Calls, watched: Watched, link: Link) -> None:
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
    ran_plain = calls.plain > link.plain and calls.plain > watched.forgiven(calls)
    if ran_plain and _steps(link.ours + link.others):
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
    return _is_one_of_several() or any(parameter.grad is not None for parameter in alive(held))


def _gradients_tell_plain(model: nn.Module, link: Link) -> bool:
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
    stepped = [parameter for parameter in alive(link.others) if parameter.grad is not None]
    if not stepped:
        return False
    shared = {id(parameter) for other in _others_that_ran(model) for parameter in other.parameters()}
    return any(id(parameter) not in shared and _is_nonzero(parameter.grad) for parameter in stepped)


def note_chunks(model: nn.Module, chunks: Iterable[nn.Module]) -> None:
    """Note that a model was cut, and that this rank trains some chunks of it: optimizers hold what these have.

    Args:
        model: prepared, whose parameters the chunks hold.
        chunks: of this rank.
    """
    _chunks[model] = [weakref.ref(chunk) for chunk in chunks]


def _check_held(optimizer: Optimizer, model: nn.Module, link: Link) -> None:
    """That some optimizer holds the AttnRes parameters of a model that this one holds other parameters of.

    One that holds all others is the only one, so that its first step tells. One that holds a part may have another
    beside it that holds ours, which has stepped by the time of its second step.

    Raises:
        OptimizerError: none does.
    """
    chunks = [chunk for reference in _chunks.get(model, ()) if (chunk := reference()) is not None]
    here = {id(parameter) for chunk in chunks for parameter in chunk.parameters()}
    ours = [one for one in link.registered.alive() if one.requires_grad and (not chunks or id(one) in here)]
    if not ours or link.registered.holders:
        return
    own = set(map(id, link.registered.alive()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]
    stepped = [parameter for parameter in alive(link.others) if parameter.requires_grad]
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
        'and model.compile(backend="attnres", fullgraph=True) names the line. Run what is to be plain inside '
        "attnres_compile.plain(model); to train the plain model for good, call attnres_compile.unprepare(model)."
    )


def _others_that_ran(model: nn.Module) -> list[nn.Module]:
    """Prepared models but this one that have run as they should."""
    others = [(other, added.calls) for other, added in parameters.prepared_models() if other is not model]
    return [other for other, calls in others if calls.rewritten or calls.plain_on_purpose]


def _is_one_of_several() -> bool:
    """Whether this process is one of several ranks."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _is_nonzero(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())
