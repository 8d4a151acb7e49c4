"""Analysis: candidate residual streams, by structure alone.

A candidate is a chain of states ``s_0, s_1, .. s_W`` with ``s_i = s_{i-1} + v_i`` where ``v_i`` depends on an earlier
state. Between two additions the stream may be carried through operations that treat every source alike: views,
casts, permutations of all but the last axis, dropout, a factor that does not depend on it. Which operand is the state
is decided by dependence, not by position: in ``f(x) + x`` the branch depends on the state, never the other way round.

Dependence is tracked forward as a small set of live starting points per value, dropped as soon as no later addition
can start from them, so the whole search is linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from attnres_passes.analyses.aten_trace import LOCAL_PART, SPREAD, STALE_ALIAS, AtenTrace, Op, Ref
from attnres_passes.analyses.carries.carry import Carry, CarryStep, carry_step
from attnres_passes.analyses.carries.mixing import Mixing, behind_views, mixed_from
from attnres_passes.analyses.carries.sums import newest_additions, sums_of
from attnres_passes.analyses.degrees.degree import functional_name, is_shape_only

LONGEST_CARRY = 16
"""Carrying operations looked through between two additions; a bound that keeps the search linear."""

_HIDE_NONE = frozenset({STALE_ALIAS, LOCAL_PART, SPREAD})
_MATRIX_PRODUCTS = ("mm", "mv", "convolution", "scaled_dot_product", "rnn")


@dataclass(frozen=True)
class Addition:
    """``after = state + branch``. carried: the steps from the previous state's value to ``state``."""

    op: int
    state: int
    branch: int
    after: int
    carried: tuple[CarryStep, ...]


@dataclass(frozen=True)
class Candidate:
    """A chain of additions from ``root``. forks: additions that start from a state of the chain and leave it.

    has_product: whether some branch passes through a matrix product on its way from the root, as sublayers do and
    pointwise polynomials (the tanh form of GELU) do not; trailing: steps that change the last state in place.
    """

    root: int
    additions: tuple[Addition, ...]
    forks: tuple[int, ...]
    has_product: bool
    trailing: tuple[CarryStep, ...] = ()


@dataclass
class _State:
    """A value in the forest of chains while it grows."""

    value: int
    addition: Addition | None
    parent: _State | None
    depth: int
    root: int


@dataclass(frozen=True)
class Chains:
    """What a trace adds up.

    candidates: in the order of their roots; other_sums: operations that add what is made of a value by a matrix
    product to that value, in another way than a chain does; mixed: additions to a running sum that is mixed itself on
    the way from one to the next, in graph order, and how.
    """

    candidates: tuple[Candidate, ...]
    other_sums: frozenset[int]
    mixed: tuple[tuple[int, Mixing], ...] = ()

    @property
    def sublayer_sums(self) -> frozenset[int]:
        """All operations that add a sublayer's output, in a chain or not."""
        chains = (candidate.additions for candidate in self.candidates if candidate.has_product)
        return self.other_sums.union(addition.op for chain in chains for addition in chain)


_NONE_KNOWN: Mapping[int, int] = MappingProxyType({})


def find_chains(trace: AtenTrace, known: Mapping[int, int] = _NONE_KNOWN) -> tuple[Candidate, ...]:
    """All candidates of a trace, in the order of their roots. Linear in the number of operations.

    Args:
        trace: of a captured graph.
        known: values that are states of a stream that began in an earlier graph, and how many writes each holds. What
            is added to one of them was made from the stream there, if not here; one that nothing is added to is a
            candidate without additions.
    """
    return search_chains(trace, known).candidates


def search_chains(trace: AtenTrace, known: Mapping[int, int] = _NONE_KNOWN) -> Chains:
    """All candidates of a trace, and the sums that are no step of one. Linear in the number of operations.

    Args:
        trace, known: those of ``find_chains``.
    """
    # What nothing depends on adds nothing, such as the last state of a linear attention that keeps no cache.
    live = {index for ops in trace.node_ops for index in ops}
    additions = [op for op in trace.ops if op.index in live and _is_addition(trace, op)]
    search = _Search(trace, additions)
    for value, writes in known.items():
        search.state_of[value] = _State(value, None, None, max(writes, 1), value)
    adding = {op.index for op in additions}
    for op in trace.ops:
        search.follow_dependence(op)
        if op.index in adding:
            search.add(op)
        elif op.index in search.sums:
            search.look_at_sum(op)
    return Chains(search.candidates(), frozenset(search.other_sums), tuple(search.mixed.items()))


def is_matrix_product(op: Op) -> bool:
    """Whether ``op`` mixes features or tokens by a matrix product, a convolution or attention."""
    return any(name in op.name for name in _MATRIX_PRODUCTS)


def _is_addition(trace: AtenTrace, op: Op) -> bool:
    """A sum of two tensors of which at least one has the shape of the result and a last axis of known size."""
    if functional_name(op) != "aten.add" or op.kwargs.get("alpha", 1) != 1 or len(op.outputs) != 1:
        return False
    shape = trace.values[op.outputs[0]].shape
    operands = [argument for argument in op.args[:2] if isinstance(argument, Ref)]
    if len(operands) != 2 or not shape or not isinstance(shape[-1], int):
        return False
    return any(trace.values[operand.value].shape == shape for operand in operands)


class _Search:
    def __init__(self, trace: AtenTrace, additions: list[Op]) -> None:
        self.trace = trace
        self.state_of: dict[int, _State] = {}
        self.children: dict[int, list[_State]] = {}
        # Last addition that can start from a value, directly or through carrying operations.
        self.live_until: dict[int, int] = {}
        self.depends_on: dict[int, frozenset[int]] = {}
        self.product_of: dict[int, frozenset[int]] = {}
        self.rooted_with_product: set[int] = set()
        self.other_sums: set[int] = set()
        self.mixed: dict[int, Mixing] = {}
        self.newest = newest_additions(trace, additions)
        adding = {op.index for op in additions}
        self.sums = {op.index: found for op in trace.ops if op.index not in adding and (found := [*sums_of(trace, op)])}
        starts = {op.index: [operand.value for operand in op.args[:2]] for op in additions}
        starts |= {index: [one.state for one in found] for index, found in self.sums.items()}
        for index, values in sorted(starts.items()):
            for start in values:
                before = self._carried_back(start)
                mixed = [value for one in mixed_from(trace, before) for value in behind_views(trace, one.stream)]
                self.live_until.update(dict.fromkeys([*mixed, *(value for value, _ in before)], index))

    def follow_dependence(self, op: Op) -> None:
        """Starting points that the outputs of ``op`` depend on, without those that no addition can use any more."""
        if is_shape_only(op):
            return
        live = frozenset().union(*(self.depends_on.get(value, frozenset()) for value in op.inputs))
        starts = frozenset(value for value in op.inputs if value in self.live_until)
        live = frozenset(value for value in live | starts if self.live_until[value] >= op.index)
        if not live:
            return
        hides_product = op.name not in _HIDE_NONE and not op.name.startswith(("aten.", "prims."))
        is_product = is_matrix_product(op) or hides_product
        product = frozenset().union(*(self.product_of.get(value, frozenset()) for value in op.inputs)) & live
        for value in op.outputs:
            self.depends_on[value] = live
            self.product_of[value] = live if is_product else product

    def add(self, op: Op) -> None:
        """Take ``op`` as the next addition of a chain, or as the first of a new one, if it is either."""
        best: tuple[bool, int, _State, Addition] | None = None
        left, right = op.args[0].value, op.args[1].value
        for state, branch in ((left, right), (right, left)):
            found = self._start(op, state, branch)
            if found is not None and (best is None or found[:2] > best[:2]):
                best = found
        # Of a gate and what it is multiplied by, either may look like what goes on.
        if best is None or (best[1] == 0 and any(step.kind is Carry.FACTOR for step in best[3].carried)):
            self._note_mixing(op)
        if best is None:
            return
        depends, _, parent, addition = best
        if addition.branch in self.product_of and parent.root in self.product_of[addition.branch]:
            self.rooted_with_product.add(parent.root)
        self.state_of.setdefault(parent.value, parent)
        state = _State(addition.after, addition, parent, parent.depth + 1, parent.root)
        self.state_of[addition.after] = state
        # ``2 * x + b`` of a state that goes on elsewhere is a reader of it, and no second continuation.
        if depends or not any(step.kind is Carry.FACTOR for step in addition.carried):
            self.children.setdefault(parent.value, []).append(state)
        # The root stays a starting point for as long as its chain can grow.
        self.live_until[parent.root] = max(self.live_until[parent.root], self.live_until.get(addition.after, -1))

    def _note_mixing(self, op: Op) -> None:
        """Note ``op`` if it adds a sublayer's output to what a gate or a product over lanes made of the sum before."""
        left, right = op.args[0].value, op.args[1].value
        for state, branch in ((left, right), (right, left)):
            for mixed in mixed_from(self.trace, self._carried_back(state)):
                sums = set(behind_views(self.trace, mixed.stream))
                by = self.product_of.get(mixed.by, frozenset())
                is_gated = mixed.kind is Mixing.LANES or not sums.isdisjoint(by)
                if is_gated and not sums.isdisjoint(self.product_of.get(branch, ())):
                    self.mixed[op.index] = mixed.kind

    def look_at_sum(self, op: Op) -> None:
        """Note ``op`` if what it adds to a value is made of that value by a matrix product."""
        for found in self.sums[op.index]:
            origins = {value for value, _ in self._carried_back(found.state)}
            reached = self.depends_on if found.has_product else self.product_of
            if any(not origins.isdisjoint(reached.get(branch, ())) for branch in found.branches):
                self.other_sums.add(op.index)
                return

    def _start(self, op: Op, state: int, branch: int) -> tuple[bool, int, _State, Addition] | None:
        after = op.outputs[0]
        if self.trace.values[state].shape != self.trace.values[after].shape:
            return None
        depends_on = self.depends_on.get(branch, frozenset()) | {branch}
        path: list[CarryStep] = []
        factors: list[int] = []
        new_root: tuple[bool, int, _State, Addition] | None = None
        for value, step in self._carried_back(state):
            if step is not None:
                path.append(step)
                factors.extend(step.factors)
            known = self.state_of.get(value)
            root = value if known is None else known.root
            if any(root == factor or root in self.depends_on.get(factor, frozenset()) for factor in factors):
                break  # a gate, or a norm: what the stream is multiplied by is made of it
            addition = Addition(op.index, state, branch, after, tuple(reversed(path)))
            if known is not None:
                depends = root in depends_on or value == branch
                # An addend that does not depend on the stream is a write only of a chain that has begun.
                return (depends, known.depth, known, addition) if depends or known.depth > 0 else new_root
            if new_root is None and value in depends_on:
                new_root = (True, 0, _State(value, None, None, 0, value), addition)
        return new_root

    def _carried_back(self, value: int) -> list[tuple[int, CarryStep | None]]:
        """``value`` and the values that it was carried from, each with the step that leads away from it."""
        values: list[tuple[int, CarryStep | None]] = [(value, None)]
        while len(values) <= LONGEST_CARRY:
            step = carry_step(self.trace, value, self.newest)
            if step is None:
                break
            value = step.before
            values.append((value, step))
        return values

    def candidates(self) -> tuple[Candidate, ...]:
        """The longest chain of each tree; what else starts from one of its states is a fork."""
        roots = [state for state in self.state_of.values() if state.parent is None]
        deepest: dict[int, _State] = {}
        for state in self.state_of.values():
            best = deepest.get(state.root)
            if best is None or state.depth > best.depth:
                deepest[state.root] = state
        found = []
        for root in sorted(roots, key=lambda state: state.value):
            chain: list[Addition] = []
            link: _State | None = deepest[root.value]
            while link is not None and link.addition is not None:
                chain.append(link.addition)
                link = link.parent
            chain.reverse()
            on_chain = {addition.op for addition in chain}
            trunk = [root.value, *(addition.after for addition in chain)]
            forks = tuple(
                child.addition.op
                for value in trunk
                for child in self.children.get(value, ())
                if child.addition is not None and child.addition.op not in on_chain
            )
            has_product = root.value in self.rooted_with_product
            found.append(Candidate(root.value, tuple(chain), forks, has_product, self._trailing(chain)))
        return tuple(found)

    def _trailing(self, chain: list[Addition]) -> tuple[CarryStep, ...]:
        """Who reads the last state after such a step names the addition, and gets what was made of it since."""
        steps: list[CarryStep] = []
        value: int | None = chain[-1].after if chain else None
        while value is not None and len(steps) < LONGEST_CARRY:
            changed = [op for op in map(self.trace.ops.__getitem__, self.trace.users[value]) if value in op.changes]
            step = carry_step(self.trace, changed[0].outputs[0], self.newest) if len(changed) == 1 else None
            value = None
            if step is not None and all(self.newest[factor] < chain[0].op for factor in step.factors):
                steps.append(step)
                value = step.after
        return tuple(steps)
