"""Analysis: candidate residual streams, by structure alone.

A candidate is a chain of states ``s_0, s_1, .. s_W`` with ``s_i = s_{i-1} + v_i`` where ``v_i`` depends on an earlier
state. Between two additions the stream may be carried through operations that treat every source alike: views,
casts, permutations of all but the last axis, dropout. Which operand is the state is decided by dependence, not by
position: in ``f(x) + x`` the branch depends on the state, never the other way round.

Dependence is tracked forward as a small set of live starting points per value, dropped as soon as no later addition
can start from them, so the whole search is linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref
from attnres_passes.analyses.degrees.degree import functional_name, is_shape_only

LONGEST_CARRY = 16
"""Carrying operations looked through between two additions; a bound that keeps the search linear."""

_RESHAPES = frozenset(
    f"aten.{name}"
    for name in ["view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "alias", "clone", "lift_fresh"]
)
_PERMUTATIONS = frozenset({"aten.permute", "aten.transpose"})
_RANDOM = frozenset({"aten.bernoulli", "aten.bernoulli_", "aten.native_dropout"})
_MATRIX_PRODUCTS = ("mm", "mv", "convolution", "scaled_dot_product")


class Carry(Enum):
    """How the stream is carried from one value to the next without an addition."""

    RESHAPE = "reshape"
    PERMUTE = "permute"
    CAST = "cast"
    DETACH = "detach"
    MASK = "mask"


@dataclass(frozen=True)
class CarryStep:
    """One carrying operation on the way from a state to the next addition."""

    op: int
    kind: Carry
    before: int
    after: int


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
    pointwise polynomials (the tanh form of GELU) do not.
    """

    root: int
    additions: tuple[Addition, ...]
    forks: tuple[int, ...]
    has_product: bool


@dataclass
class _State:
    """A value in the forest of chains while it grows."""

    value: int
    addition: Addition | None
    parent: _State | None
    depth: int
    root: int


_NONE_KNOWN: Mapping[int, int] = MappingProxyType({})


def find_chains(trace: AtenTrace, known: Mapping[int, int] = _NONE_KNOWN) -> tuple[Candidate, ...]:
    """All candidates of a trace, in the order of their roots. Linear in the number of operations.

    Args:
        trace: of a captured graph.
        known: values that are states of a stream that began in an earlier graph, and how many writes each holds. What
            is added to one of them was made from the stream there, if not here; one that nothing is added to is a
            candidate without additions.
    """
    additions = [op for op in trace.ops if _is_addition(trace, op)]
    search = _Search(trace, additions)
    for value, writes in known.items():
        search.state_of[value] = _State(value, None, None, max(writes, 1), value)
    adding = {op.index for op in additions}
    for op in trace.ops:
        search.follow_dependence(op)
        if op.index in adding:
            search.add(op)
    return search.candidates()


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
        for op in additions:
            for operand in op.args[:2]:
                for value, _ in self._carried_back(operand.value):
                    self.live_until[value] = op.index

    def follow_dependence(self, op: Op) -> None:
        """Starting points that the outputs of ``op`` depend on, without those that no addition can use any more."""
        if is_shape_only(op):
            return
        live = frozenset().union(*(self.depends_on.get(value, frozenset()) for value in op.inputs))
        starts = frozenset(value for value in op.inputs if value in self.live_until)
        live = frozenset(value for value in live | starts if self.live_until[value] >= op.index)
        if not live:
            return
        is_product = is_matrix_product(op)
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
        if best is None:
            return
        _, _, parent, addition = best
        if addition.branch in self.product_of and parent.root in self.product_of[addition.branch]:
            self.rooted_with_product.add(parent.root)
        self.state_of.setdefault(parent.value, parent)
        state = _State(addition.after, addition, parent, parent.depth + 1, parent.root)
        self.state_of[addition.after] = state
        self.children.setdefault(parent.value, []).append(state)
        # The root stays a starting point for as long as its chain can grow.
        self.live_until[parent.root] = max(self.live_until[parent.root], self.live_until.get(addition.after, -1))

    def _start(self, op: Op, state: int, branch: int) -> tuple[bool, int, _State, Addition] | None:
        after = op.outputs[0]
        if self.trace.values[state].shape != self.trace.values[after].shape:
            return None
        branch_depends_on = self.depends_on.get(branch, frozenset())
        path: list[CarryStep] = []
        new_root: tuple[bool, int, _State, Addition] | None = None
        for value, step in self._carried_back(state):
            if step is not None:
                path.append(step)
            addition = Addition(op.index, state, branch, after, tuple(reversed(path)))
            known = self.state_of.get(value)
            if known is not None:
                depends = known.root in branch_depends_on or value == branch
                # An addend that does not depend on the stream is a write only of a chain that has begun.
                return (depends, known.depth, known, addition) if depends or known.depth > 0 else new_root
            if new_root is None and value in branch_depends_on:
                new_root = (True, 0, _State(value, None, None, 0, value), addition)
        return new_root

    def _carried_back(self, value: int) -> list[tuple[int, CarryStep | None]]:
        """``value`` and the values that it was carried from, each with the step that leads away from it."""
        values: list[tuple[int, CarryStep | None]] = [(value, None)]
        while len(values) <= LONGEST_CARRY:
            step = _carry_step(self.trace, value)
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
            found.append(Candidate(root.value, tuple(chain), forks, root.value in self.rooted_with_product))
        return tuple(found)


def _carry_step(trace: AtenTrace, value: int) -> CarryStep | None:
    """The carrying operation that made a value, or None if it was made in another way."""
    producer = trace.values[value].producer
    if producer < 0:
        return None
    op = trace.ops[producer]
    if not op.inputs or op.outputs[0] != value:
        return None
    before, kind = op.inputs[0], _carry(trace, op)
    if kind is None or not _keeps_last_axis(trace, before, value):
        return None
    return CarryStep(op.index, kind, before, value)


def _carry(trace: AtenTrace, op: Op) -> Carry | None:
    if op.name in _RESHAPES:
        return Carry.RESHAPE
    if op.name == "aten.detach":
        return Carry.DETACH
    if op.name in _PERMUTATIONS:
        return Carry.PERMUTE if _fixes_last_axis(trace, op) else None
    if op.name == "aten._to_copy":
        both = trace.values[op.inputs[0]], trace.values[op.outputs[0]]
        return Carry.CAST if all(value.is_floating for value in both) else None
    is_mask = op.name == "aten.native_dropout" or (functional_name(op) == "aten.mul" and _is_dropout(trace, op))
    return Carry.MASK if is_mask else None


def _is_dropout(trace: AtenTrace, op: Op) -> bool:
    """Dropout decomposes, within one node of the graph, into a random mask and a product with it."""
    is_random = any(trace.ops[index].name in _RANDOM for index in trace.node_ops[op.node])
    return is_random and set(trace.node_inputs[op.node].values()) == {op.inputs[0]}


def _fixes_last_axis(trace: AtenTrace, op: Op) -> bool:
    rank = len(trace.values[op.inputs[0]].shape)
    last = {rank - 1, -1}
    if op.name == "aten.permute":
        return op.args[1][-1] in last
    return not last.intersection(op.args[1:3])


def _keeps_last_axis(trace: AtenTrace, before: int, after: int) -> bool:
    old, new = trace.values[before].shape, trace.values[after].shape
    return bool(old) and bool(new) and old[-1] == new[-1]
