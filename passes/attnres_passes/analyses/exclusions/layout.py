"""Analysis: streams whose features are on another axis than the last, told by what their readers work along.

A reader multiplies the features of a state by a weight, and takes its statistics along them. If products show it, they
decide: a stream whose readers multiply along other axes alone has its features there. A product along another axis
beside ones along the last mixes tokens. Where no product shows it, statistics do.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import torch

from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref
from attnres_passes.analyses.chains import Candidate
from attnres_passes.analyses.degrees.degree import functional_name, is_shape_only
from attnres_passes.analyses.degrees.feature_axis import axis_after, reduced_axes
from attnres_passes.analyses.reads import trunk_of

_LEFT_AND_RIGHT = {
    **dict.fromkeys(("aten.mm", "aten.bmm", "aten.mv", "aten._grouped_mm"), (0, 1)),
    **dict.fromkeys(("aten.addmm", "aten.baddbmm"), (1, 2)),
}
"""Where the two factors are among the arguments."""

_MERGED = -1
"""In place of an axis: a view has merged it with others, and the last axis is not among them."""

_VIEWS = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape"})
_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})


@dataclass
class _Evidence:
    """Whether something works along the last axis, and the first operation that works along another one."""

    along_last: bool = False
    along_other: int | None = None

    def add(self, op: Op, is_last: bool) -> None:
        if is_last:
            self.along_last = True
        elif self.along_other is None:
            self.along_other = op.index

    @property
    def is_known(self) -> bool:
        return self.along_last or self.along_other is not None


def features_elsewhere(trace: AtenTrace, candidate: Candidate) -> int | None:
    """The first operation that works along the axis of the features, if that is not the last one of the stream.

    Looks at each operation between a state and the first product with its features once.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
    """
    search = _Search(trace, candidate)
    search.run()
    evidence = search.products if search.products.is_known else search.statistics
    return None if evidence.along_last else evidence.along_other


class _Search:
    """Follows the last axis of all states forward."""

    def __init__(self, trace: AtenTrace, candidate: Candidate) -> None:
        trunk = trunk_of(candidate)
        self.trace, self.trunk_ops = trace, trunk.ops
        self.axes = {value: len(trace.values[value].shape) - 1 for value in trunk.state_of}
        self.products, self.statistics = _Evidence(), _Evidence()
        # What is made of a state by a reduction alone, and what such a statistic was applied to.
        self.reduced: set[int] = set()
        self.normed: set[int] = set()

    def run(self) -> None:
        pending = sorted({op for value in self.axes for op in self.trace.users[value]})
        queued = set(pending)
        while pending:
            op = self.trace.ops[heapq.heappop(pending)]
            if op.index in self.trunk_ops or is_shape_only(op):
                continue
            for value in self._visit(op):
                fresh = set(self.trace.users[value]) - queued
                queued |= fresh
                for user in fresh:
                    heapq.heappush(pending, user)

    def _visit(self, op: Op) -> list[int]:
        """Look at one operation; returns the outputs that still have the axis."""
        node = self.trace.nodes[op.node]
        if node.target is torch.einsum and isinstance(node.args[0], str):
            return self._visit_einsum(op, node.args[0])
        followed: dict[int, int] = {}
        for value in dict.fromkeys(op.inputs):
            axis = self.axes.get(value)
            if axis is None:
                continue
            contracted = contracted_axis(op, value, self.trace)
            if contracted is not None:
                self.products.add(op, axis == contracted)
                if axis == contracted:
                    continue
            rank = len(self.trace.values[value].shape)
            reduced = {rank - 1} if op.name in _NORMS else reduced_axes(op, rank)
            if reduced and value not in self.normed:
                self.statistics.add(op, axis in reduced)
            after = axis if contracted is not None else self._axis_after(op, value, axis)
            if after is not None:
                followed.setdefault(op.outputs[0], after)
        self._note_statistics(op)
        fresh = {value: axis for value, axis in followed.items() if value not in self.axes}
        self.axes.update(fresh)
        return list(fresh)

    def _axis_after(self, op: Op, value: int, axis: int) -> int | None:
        before, after = self.trace.values[value].shape, self.trace.values[op.outputs[0]].shape
        keeps_last = before[-1:] == after[-1:]
        if axis == _MERGED:
            return _MERGED if keeps_last and (op.name in _VIEWS or len(before) == len(after)) else None
        moved = axis_after(op, value, axis, self.trace)
        was_merged = moved is None and op.name in _VIEWS and axis < len(before) - 1 and keeps_last
        return _MERGED if was_merged else moved

    def _note_statistics(self, op: Op) -> None:
        """A norm is a state with its statistic applied; what is reduced behind it is no norm, but a pooling."""
        seen = [value for value in op.inputs if value in self.axes]
        is_statistic = [value in self.reduced for value in seen]
        if reduced_axes(op, 1) or (seen and all(is_statistic)):
            self.reduced.update(op.outputs)
        elif any(is_statistic) or any(value in self.normed for value in seen):
            self.normed.update(op.outputs)

    def _visit_einsum(self, op: Op, equation: str) -> list[int]:
        """One node, many operations: its equation says which letters are contracted."""
        operands, arrow, result = equation.replace(" ", "").partition("->")
        node, output = self.trace.nodes[op.node], self.trace.node_output[op.node]
        given = [argument for argument in node.args[1:] if isinstance(argument, torch.fx.Node)]
        if not arrow or "." in equation or output is None or len(given) != len(operands.split(",")):
            return []
        for letters, argument in zip(operands.split(","), given, strict=True):
            axis = self.axes.get(self.trace.node_inputs[op.node].get(argument, -1))
            if axis is None or axis == _MERGED or axis >= len(letters):
                continue
            is_contracted = letters[axis] not in result
            if is_contracted or set(letters) - set(result):
                self.products.add(op, is_contracted)
            if not is_contracted and output not in self.axes:
                self.axes[output] = result.index(letters[axis])
                return [output]
        return []


def contracted_axis(op: Op, value: int, trace: AtenTrace) -> int | None:
    """The axis of an input that a product sums over; None if the operation is no product of it with something else.

    Args:
        op: the operation.
        value: number of the input.
        trace: of the captured graph.
    """
    factors: Any = _LEFT_AND_RIGHT.get(functional_name(op))
    rank = len(trace.values[value].shape)
    if factors is not None:
        left, right = (op.args[position] for position in factors)
        return rank - 1 if left == Ref(value) else max(rank - 2, 0) if right == Ref(value) else None
    return 1 if op.name == "aten.convolution" and op.args[0] == Ref(value) else None
