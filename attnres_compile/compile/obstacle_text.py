"""Words for what keeps a graph that is a piece of its model from being rewritten."""

from __future__ import annotations

from attnres_passes.analyses.piece import Obstacle
from attnres_passes.ir import provenance
from attnres_passes.ir.plan import Plan, short_source


def obstacle_text(obstacle: Obstacle, plan: Plan) -> str:
    """What the error says, with the line and what to do.

    Args:
        obstacle: that was found.
        plan: of the model.
    """
    place, name = short_source(provenance.source_line(obstacle.node)), plan.streams[obstacle.stream].name
    if obstacle.lost_write:
        return (
            f"{obstacle.lost_write} adds to the stream {name!r} at {place}, in a part of the model that is compiled by "
            "itself, and the sources of what it adds to are not known: no compiled part of the same model gave it, or "
            "it was changed since. Call the whole model; compile all parts that add to the stream; and leave what goes "
            "from one to the next as it is."
        )
    return (
        f"the stream {name!r} cannot be followed through a part of the model that is compiled by itself: "
        f"{obstacle.message}, at {place}. Write it as a plain addition of tensors that nothing else changes in place, "
        "or compile the whole model."
    )
