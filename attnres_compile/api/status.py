"""``status``: what compilation last did to a model."""

from __future__ import annotations

from torch import nn

from attnres_compile.model.parameters import parameters_of, unwrapped
from attnres_compile.model.status import Status, last_note


def status(model: nn.Module) -> Status:
    """What the backend last did to ``model``; says so also where torch suppresses errors of backends."""
    model = unwrapped(model)
    parameters, seen = parameters_of(model), last_note(model)
    if parameters is None:
        return seen if seen is not None and seen.state == "declined" else Status("untouched")
    if seen is None or seen.plan is not parameters.plan:
        return Status("prepared", plan=parameters.plan)
    return seen
