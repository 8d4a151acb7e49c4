"""Analysis: two running sums that are written from each other, as in reversible networks."""

from __future__ import annotations

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Candidate
from attnres_passes.analyses.degrees.degree import is_shape_only
from attnres_passes.analyses.reads import trunk_of


def is_reversible(trace: AtenTrace, candidate: Candidate) -> bool:
    """Whether a fork of a chain is written from its states, and its states from the fork.

    Args:
        trace: of the captured graph.
        candidate: a chain with forks.
    """
    trunk = trunk_of(candidate)
    later = {value for value, state in trunk.state_of.items() if state > 0}
    fork = trace.ops[candidate.forks[0]]
    return _is_made_of(trace, fork.inputs, later) and _leads_to(trace, fork.outputs, trunk.ops)


def _is_made_of(trace: AtenTrace, values: tuple[int, ...], states: set[int]) -> bool:
    oldest = min(trace.values[state].producer for state in states)
    pending, seen = list(values), set(values)
    while pending:
        current = pending.pop()
        if current in states:
            return True
        producer = trace.values[current].producer
        if producer < oldest or is_shape_only(trace.ops[producer]):
            continue
        fresh = [one for one in trace.ops[producer].inputs if one not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return False


def _leads_to(trace: AtenTrace, values: tuple[int, ...], ops: frozenset[int]) -> bool:
    pending, seen, last = list(values), set(values), max(ops)
    while pending:
        for index in trace.users[pending.pop()]:
            if index in ops:
                return True
            if index < last and not is_shape_only(trace.ops[index]):
                fresh = [one for one in trace.ops[index].outputs if one not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return False
