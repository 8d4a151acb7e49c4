"""Which graphs of a prepared model are pieces of it, and where in the model they are.

A graph that ran through the guard of the whole model has to hold its streams whole. Any other one may be a piece: a
layer that is compiled by itself, or what Dynamo makes of a forward that a graph break has left to Python. The guard at
the model sees, behind the call, that the pieces made every read of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule

from attnres_compile.compile.borders import PieceOptions, states_among
from attnres_compile.compile.matching import match
from attnres_compile.model.border.python_reads import plain_path
from attnres_compile.model.errors import AttnResError
from attnres_compile.model.in_force.guarded_forward import Guard
from attnres_compile.model.owner import NoOwner, Owner
from attnres_compile.model.parameters import AttnResParameters
from attnres_passes.analyses.streams import Analysis
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.torch_private.dynamo import GraphEnd, frame_modules


def prepared_parameters(owner: Owner | NoOwner, inputs: Sequence[Any]) -> AttnResParameters | None:
    """Those of the prepared model that a graph is of: its owner, or the model whose states come in; None without one.

    Args:
        owner: of the graph.
        inputs: values of its placeholders.
    """
    if isinstance(owner, Owner):
        return owner.parameters
    return next((sources.added for sources in states_among(inputs).values()), None)


def is_piece(owner: Owner | NoOwner, added: AttnResParameters, analysis: Analysis, guards: Sequence[Guard]) -> bool:
    """Whether a graph is a piece of a prepared model.

    Args:
        owner: of the graph.
        added: parameters of the model.
        analysis: of the graph.
        guards: that it ran through.
    """
    if any(guard.calls is added.calls and not guard.path for guard in guards):
        return False
    if isinstance(owner, NoOwner):
        return True
    try:
        within = next(iter(paths_in_model(owner)), "")
        matched = match(analysis.plan, added.plan, analysis.trace, GraphEnd(False), within)
    except AttnResError:
        return True
    return not matched.planned


def piece_options(owner: Owner | NoOwner, gm: GraphModule, config: AttnResConfig, mode: str | None) -> PieceOptions:
    """How a piece is compiled.

    Args:
        owner: of the graph.
        gm: the graph, while Dynamo hands it over.
        config, mode: of this compilation.
    """
    # With several modules in one frame, the paths of nodes do not say whose they are.
    alone = isinstance(owner, Owner) and len(frame_modules(gm)) == 1
    return PieceOptions(config, tuple(paths_in_model(owner)) if alone and isinstance(owner, Owner) else (), mode)


def paths_in_model(owner: Owner) -> list[str]:
    """Paths of the compiled module in the prepared model, wrappers left out; none if it lies around the model."""
    every = owner.model.named_modules(remove_duplicate=False)
    return [plain_path(name) for name, part in every if part is owner.frame.module]
