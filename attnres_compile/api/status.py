"""``status``: what the last call of a model was, and what came before."""

from __future__ import annotations

import dataclasses

from torch import nn

from attnres_compile.model.in_force.guarded_forward import codes_of
from attnres_compile.model.parameters import AttnResParameters, find_prepared, parameters_of, unwrapped
from attnres_compile.model.status import State, Status, last_note
from attnres_passes.torch_private.frames import graphs_against_limit, recompile_limit


def status(model: nn.Module) -> Status:
    """What the last call of ``model`` was, with counts; it says so also where torch suppresses errors of backends.

    Args:
        model: any model, or what torch.compile, DDP, FSDP, peft or an average of weights put around it.
    """
    prepared = find_prepared(model)
    added = None if prepared is None else parameters_of(prepared)
    if prepared is None or added is None:
        seen = last_note(unwrapped(model))
        return seen if seen is not None and seen.state == "declined" else Status("untouched")
    calls, seen = added.calls, last_note(prepared)
    if seen is None or seen.plan is not added.plan:
        seen = Status("prepared", plan=added.plan)
    return dataclasses.replace(
        seen,
        state=_state(added, seen),
        rewritten_calls=calls.rewritten,
        plain_on_purpose_calls=calls.plain_on_purpose,
        plain_calls=calls.plain,
        refused_calls=calls.refused,
        graphs_kept=max(graphs_against_limit(code, {"self": prepared}) for code in codes_of(prepared)),
        recompile_limit=recompile_limit(),
    )


def _state(added: AttnResParameters, seen: Status) -> State:
    """What the last call was; without one, what compilation last did."""
    last: State = added.calls.last or seen.state
    return "partly rewritten" if last == "rewritten" and added.plan.partial else last
