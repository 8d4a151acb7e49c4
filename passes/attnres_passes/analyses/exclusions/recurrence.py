"""Analysis: chains that step through time, ``h_t = h_{t-1} + f(x_t, h_{t-1})``.

Such a chain adds with the same weights again and again, and each addition takes another position of one tensor of the
input. A looped transformer shares its weights, too, but each of its loops sees the whole input; layers that take a part
of a table each have weights of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import nn

from attnres_passes.analyses.aten_trace import AtenTrace, Op
from attnres_passes.analyses.carries.mixing import behind_views
from attnres_passes.analyses.chains import Candidate
from attnres_passes.analyses.degrees.degree import is_shape_only
from attnres_passes.analyses.reads import trunk_of
from attnres_passes.torch_private.example_values import example_value

_POSITIONS = frozenset(f"aten.{name}" for name in ("select", "slice", "narrow", "unbind", "split", "split_with_sizes"))


@dataclass
class _Given:
    """What one write is made of. weights: what was there before it; positions: of each sliced tensor, where it was."""

    weights: set[int] = field(default_factory=set)
    positions: dict[int, set[Hashable]] = field(default_factory=lambda: defaultdict(set))


def is_recurrence(trace: AtenTrace, candidate: Candidate) -> bool:
    """Whether a chain steps through positions of its input with one set of weights.

    Looks once at the operations between two additions, so it is linear in the size of the graph.

    Args:
        trace: of the captured graph.
        candidate: the chain.
    """
    states = frozenset(trunk_of(candidate).state_of)
    begin = trace.values[candidate.root].producer
    given = []
    for addition in candidate.additions:
        given.append(_given(trace, addition.branch, states, begin))
        begin = addition.op
    alike: dict[frozenset[int], list[_Given]] = defaultdict(list)
    for one in given:
        alike[frozenset(one.weights)].append(one)
    if any(len(members) < 2 for members in alike.values()):
        return False
    return any(_steps_through_input(trace, members) for members in alike.values())


def _steps_through_input(trace: AtenTrace, members: list[_Given]) -> bool:
    shared = set(members[0].positions).intersection(*(member.positions for member in members[1:]))
    for tensor in shared:
        taken = [frozenset(member.positions[tensor]) for member in members]
        if len(set(taken)) == len(taken) and not _is_of_parameters(trace, tensor):
            return True
    return False


def _given(trace: AtenTrace, branch: int, states: frozenset[int], begin: int) -> _Given:
    """What the operations behind ``begin`` make a branch of."""
    given = _Given()
    pending, seen = [branch], {branch}
    while pending:
        value = pending.pop()
        if value in states:
            continue
        producer = trace.values[value].producer
        if producer <= begin:
            # Made before: a weight, or a position that was taken, and perhaps reshaped, before the first step.
            value = behind_views(trace, value)[-1]
            producer = trace.values[value].producer
        op = trace.ops[producer] if producer >= 0 else None
        if op is not None and op.name in _POSITIONS:
            given.positions[op.inputs[0]].add(_position(op, value))
            continue
        if op is None or producer <= begin:
            given.weights.add(value)
            continue
        if is_shape_only(op):
            continue
        fresh = [one for one in op.inputs if one not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return given


def _position(op: Op, value: int) -> Hashable:
    return op.name, str(op.args[1:]), op.outputs.index(value)


def _is_of_parameters(trace: AtenTrace, value: int) -> bool:
    """Whether a value is made of parameters alone, such as a table of step embeddings."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        producer = trace.values[current].producer
        if producer < 0:
            node = trace.nodes[trace.node_output.index(current)] if current in trace.node_output else None
            if node is None or not isinstance(example_value(node), nn.Parameter):
                return False
            continue
        fresh = [one for one in trace.ops[producer].inputs if one not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return True
