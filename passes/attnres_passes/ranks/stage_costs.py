"""Analysis: FLOPs of every sublayer of a rewritten graph, to balance pipeline stages by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Node
from torch.utils._pytree import tree_map_only

from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref
from attnres_passes.ranks.stage_layout import StageError
from attnres_passes.torch_private.operators import flop_formula


def sublayer_flops(
    trace: AtenTrace, positions: Mapping[Node, int | None], nodes: Sequence[Node], writes: int
) -> list[int]:
    """FLOPs of the forward of the sublayers ``1 .. writes``; two per multiplication and addition.

    What comes before the stream counts to the first sublayer, what comes after it to the last one.

    Args:
        trace: of a copy of the graph that ``nodes`` is of, node for node.
        positions: the sublayer that each node belongs to; None for what no sublayer precedes.

    Raises:
        StageError: a size is dynamic.
    """
    flops = [0] * writes
    for op in trace.ops:
        position = positions[nodes[op.node]]
        flops[(position or 1) - 1] += op_flops(trace, op)
    return flops


def op_flops(trace: AtenTrace, op: Op) -> int:
    """FLOPs of one operation, by torch's formulas; 0 for those that have none, such as elementwise ones."""
    formula = flop_formula(op.target)
    if formula is None:
        return 0
    args, kwargs = tree_map_only(Ref, lambda ref: _shape(trace, ref), (op.args, op.kwargs))
    outputs: Any = [list(trace.values[value].shape) for value in op.outputs]
    return int(formula(*args, **kwargs, out_val=outputs[0] if len(outputs) == 1 else outputs))


def _shape(trace: AtenTrace, ref: Ref) -> list[int]:
    shape = trace.values[ref.value].shape
    if not all(isinstance(size, int) for size in shape):
        raise StageError(
            f"a tensor of shape {shape} has a dynamic size, and pipeline stages have fixed ones; compile with "
            "dynamic=False, on inputs of one size."
        )
    return list(shape)
