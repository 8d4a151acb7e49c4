"""The check, before every step of an optimizer, that it holds the parameters that the rewrite added."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from attnres_compile.model import parameters
from attnres_compile.model.errors import OptimizerError

_watching = False
# Per optimizer, what it and the prepared models were when it was last found in order.
_in_order: weakref.WeakKeyDictionary[Optimizer, tuple[int, frozenset[int]]] = weakref.WeakKeyDictionary()
# Per optimizer that holds a part of a model, the models that it has stepped once without their parameters.
_stepped_without: weakref.WeakKeyDictionary[Optimizer, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()
# Models whose AttnRes parameters some optimizer holds.
_held: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def watch_optimizers() -> None:
    """From now on, an optimizer that steps a prepared model without its AttnRes parameters is an error."""
    global _watching
    if not _watching:
        register_optimizer_step_pre_hook(_check_step)
        _watching = True


def _check_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Before a step. The check is made once per optimizer and set of prepared models.

    An optimizer that holds all other trained parameters of a model is the only one, so the first step tells. One
    that holds a part may have another beside it that holds ours, which shows by the time of its second step.
    """
    models = parameters.prepared_models()
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    signature = (count, frozenset(map(id, models)))
    if _in_order.get(optimizer) == signature:
        return
    holds = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    verdicts = [_is_in_order(optimizer, model, holds) for model in models]
    if all(verdicts):
        _in_order[optimizer] = signature


def _is_in_order(optimizer: Optimizer, model: nn.Module, holds: set[int]) -> bool:
    """Whether nothing is left to find out about one model. Raises OptimizerError."""
    added = parameters.require_parameters(model)
    ours = [parameter for parameter in added.parameters() if parameter.grad is not None]
    if any(id(parameter) in holds for parameter in added.parameters()):
        _held.add(added)
    own = {id(parameter) for parameter in added.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None and id(parameter) not in own]
    stepped = [parameter for parameter in trained if id(parameter) in holds]
    if not stepped:
        return True
    if not ours and any(parameter.requires_grad for parameter in added.parameters()):
        raise OptimizerError(
            f"{type(optimizer).__name__} steps {type(model).__name__}, whose AttnRes parameters have no gradients: it "
            'ran without its depth attention. Compile it with model.compile(backend="attnres"); if it is, a graph '
            "break keeps Dynamo from compiling its forward, and torch.compile(model, fullgraph=True) names the line. "
            "To train the plain model, call attnres_compile.unprepare(model)."
        )
    if added in _held:
        return True
    seen = _stepped_without.setdefault(optimizer, weakref.WeakSet())
    if len(stepped) < len(trained) and added not in seen:
        seen.add(added)
        return False
    raise OptimizerError(
        f"{type(optimizer).__name__} steps {type(model).__name__} without its {len(own)} AttnRes parameters, which "
        "would stay at zero; make the optimizer after attnres_compile.prepare(model, ..), or call "
        "optimizer.add_param_group({'params': list(model.attnres.parameters()), 'weight_decay': 0.0})."
    )
