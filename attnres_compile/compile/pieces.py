"""A module that is compiled on its own, inside a model that runs uncompiled around it and was not prepared."""

from __future__ import annotations

from attnres_compile.capture.graph_breaks import goes_on
from attnres_compile.model.errors import PartOfModelError
from attnres_compile.model.owner import Owner
from attnres_passes.ir.plan import Plan
from attnres_passes.torch_private.dynamo import uncompiled_caller


def check_not_a_piece(owner: Owner, plan: Plan) -> None:
    """Check that the streams of a graph do not go on outside of any graph.

    A prepared model knows its streams. Of another one, this graph may be a layer, and would get parameters of its own.

    Args:
        owner: of the graph.
        plan: of the graph.

    Raises:
        PartOfModelError: the module was called by the forward of another one, outside of any graph, and gives the
            running sum of a stream back to it.
    """
    if owner.parameters is not None:
        return
    stream = next((stream for stream in plan.streams if goes_on(stream)), None)
    caller = "" if stream is None else uncompiled_caller(owner.frame.module)
    if stream is not None and caller:
        raise PartOfModelError(
            f"{type(owner.frame.module).__name__} is compiled on its own, called at {caller} outside of any graph, and "
            f"its residual stream of {len(stream.writes)} writes goes on there; it would get AttnRes parameters of its "
            "own, with the depth of a single part. Call attnres_compile.prepare(model, args) on the whole model first. "
            "If the whole model is compiled already, a graph break there cuts its stream: torch.compile(model, "
            "fullgraph=True) names the line."
        )
