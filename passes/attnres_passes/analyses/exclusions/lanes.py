"""Analysis: a running sum of several lanes, to each of which a sublayer's output is written by a weight of its own."""

from __future__ import annotations

from typing import Any

from attnres_passes.analyses.aten_trace import AtenTrace, Ref
from attnres_passes.analyses.carries.mixing import behind_views
from attnres_passes.analyses.chains import Candidate
from attnres_passes.analyses.degrees.degree import functional_name


def written_in_lanes(trace: AtenTrace, candidate: Candidate) -> int | None:
    """The first write's operation if every branch is an outer product, ``[.., lanes, 1] * [.., 1, d]``; None else.

    That is how hyper-connections write: one output of a sublayer, weighed for each lane, whether the lanes have an axis
    of their own in the sum or lie side by side in its last one. Lanes that nothing mixes are
    a sum that could be taken apart, but what reads them is a learned mixture of lanes already.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
    """
    found = [_outer_product(trace, addition.branch) for addition in candidate.additions]
    return None if None in found or not found else found[0]


def _outer_product(trace: AtenTrace, branch: int) -> int | None:
    producer = trace.values[behind_views(trace, branch)[-1]].producer
    if producer < 0 or functional_name(trace.ops[producer]) != "aten.mul":
        return None
    operands = [one.value for one in trace.ops[producer].args[:2] if isinstance(one, Ref)]
    if len(operands) != 2:
        return None
    if len(trace.values[trace.ops[producer].outputs[0]].shape) < 4:
        return None  # an axis of batch, of tokens and of features: what is weighed is tokens
    left, right = (tuple(trace.values[one].shape[-2:]) for one in operands)
    return producer if _is_outer(left, right) or _is_outer(right, left) else None


def _is_outer(weights: tuple[Any, ...], output: tuple[Any, ...]) -> bool:
    """Whether the last two axes are lanes of one side and features of the other. A size of 1 is no axis of lanes."""
    if len(weights) != 2 or len(output) != 2:
        return False
    return bool(weights[1] == 1 and output[0] == 1 and weights[0] != 1 and output[1] != 1)
