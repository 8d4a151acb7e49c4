"""Analysis: the places of an accepted stream in the captured graph, as indices of its nodes.

Chains and reads are found on values; a rewrite replaces arguments of nodes. This file says which nodes those are, or
why a stream has no such nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.carries.carry import Carry, CarryStep
from attnres_passes.analyses.chains import Addition, Candidate
from attnres_passes.analyses.left_out import origin_of
from attnres_passes.analyses.reads import ReadGroup, Trunk, trunk_of
from attnres_passes.ir.plan import Reason
from attnres_passes.torch_private.operators import is_gradient_hook


@dataclass(frozen=True)
class CarryNode:
    """A node that carries the stream on. stream: its argument that holds the stream."""

    node: int
    kind: Carry
    stream: Node
    after: int


@dataclass(frozen=True)
class WriteNode:
    """A node that adds ``branch`` to the stream. after: number of the value that it makes."""

    node: int
    branch: Node
    after: int


@dataclass(frozen=True)
class StreamNodes:
    """Where a stream is in the graph.

    root: index of the node that gives ``s_0``, or that gives the tensor which is changed in place until it is ``s_0``;
    begins: of the node behind which that is ``s_0``; value: its number; steps: carrying and writing nodes in the order
    of the stream.
    """

    root: int
    begins: int
    value: int
    steps: tuple[CarryNode | WriteNode, ...]
    reads: tuple[ReadGroup, ...]
    trunk: Trunk


@dataclass(frozen=True)
class NotReplaceable:
    """A stream that cannot be replaced node by node. node: index of what is in the way; remedy: '' for the usual."""

    node: int
    message: str
    reason: Reason = Reason.OPAQUE
    remedy: str = ""


def locate_stream(trace: AtenTrace, candidate: Candidate, reads: tuple[ReadGroup, ...]) -> StreamNodes | NotReplaceable:
    """The nodes of a stream, or the first obstacle.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
        reads: its reads.
    """
    for read in reads:
        if read.opaque:
            return NotReplaceable(
                read.uses[0][1],
                "it is read through an alias that was changed in place, or by an opaque operator",
            )
    trunk = trunk_of(candidate)
    obstacle = (
        _changed_input(trace, candidate) or _changed_source(trace, candidate, trunk, reads) or _hooked(trace, trunk)
    )
    if obstacle is not None:
        return obstacle
    steps: list[CarryNode | WriteNode] = []
    for addition in candidate.additions:
        for found in (*_carry_nodes(trace, addition.carried), _write_node(trace, addition)):
            if isinstance(found, NotReplaceable):
                return found
            steps.append(found)
    for last in _carry_nodes(trace, candidate.trailing):
        if isinstance(last, NotReplaceable):
            return last
        steps.append(last)
    root = _root(trace, candidate)
    if isinstance(root, NotReplaceable):
        return root
    stream_nodes = StreamNodes(*root, candidate.root, tuple(steps), reads, trunk)
    return _changed_sum(trace, stream_nodes) or stream_nodes


def _root(trace: AtenTrace, candidate: Candidate) -> tuple[int, int] | NotReplaceable:
    """The node whose tensor the stream begins with, and the one behind which it does.

    They are the same unless that tensor is changed in place first, as embeddings are at the places of an image: no
    node's result is what the change leaves, though later nodes are given it under the name of the tensor.
    """
    first = trace.node_output.index(candidate.root) if candidate.root in trace.node_output else None
    op = trace.maker(candidate.root)
    if op is None or not op.changes or first == op.node:
        if first is not None:
            return first, first
        assert op is not None
        return NotReplaceable(op.node, "what the stream begins with is made inside a larger operation")
    named = (argument for given in trace.node_inputs for argument, value in given.items() if value == candidate.root)
    holder = next(named, None)
    if holder is None or holder.op == "placeholder":
        return NotReplaceable(op.node, "what the stream begins with is an input of the graph, changed in place there")
    if origin_of(trace, candidate.root).additions:
        return NotReplaceable(op.node, "the running sum is changed in place there, between two of its additions")
    root = trace.nodes.index(holder)
    return root, max(root, op.node)


def _changed_input(trace: AtenTrace, candidate: Candidate) -> NotReplaceable | None:
    """An in-place addition to an input of the graph is seen by the caller, so it cannot be taken out."""
    given = {value.storage for value in trace.values if value.producer < 0}
    for addition in candidate.additions:
        for index in (*(step.op for step in addition.carried), addition.op):
            op = trace.ops[index]
            if any(trace.values[value].storage in given for value in op.changes):
                what = "an addition to it" if index == addition.op else "what carries it on"
                return NotReplaceable(op.node, f"{what} changes an input or a parameter of the model in place")
    return None


def _changed_source(
    trace: AtenTrace, candidate: Candidate, trunk: Trunk, reads: tuple[ReadGroup, ...]
) -> NotReplaceable | None:
    """A sum keeps what it was made of; a source that is read later must not change in the meantime.

    A read of a sum may change what it is given: that is its own depth attention.
    """
    matters_after = {trace.values[candidate.root].storage: trace.values[candidate.root].producer}
    for addition in candidate.additions:
        matters_after.setdefault(trace.values[addition.branch].storage, addition.op)
    of_reads = {use for read in reads if read.state > 0 for use in read.uses}
    for op in trace.ops:
        if op.index in trunk.ops:
            continue
        for value in op.changes:
            is_state = value in trunk.state_of
            is_source = op.index > matters_after.get(trace.values[value].storage, op.index)
            if (is_state or is_source) and (value, op.node) not in of_reads:
                return NotReplaceable(op.node, "what was added to it is changed in place afterwards")
    return None


def _hooked(trace: AtenTrace, trunk: Trunk) -> NotReplaceable | None:
    """A hook sees the gradient of a whole state; behind the rewrite, no tensor has it."""
    for index, node in enumerate(trace.nodes):
        if is_gradient_hook(node.target) and any(
            value in trunk.state_of for value in trace.node_inputs[index].values()
        ):
            return NotReplaceable(
                index,
                "a gradient hook is registered on a state of the stream, and depth attention makes no tensor that has "
                "the gradient of that sum",
                Reason.GRADIENT_HOOK,
                "take the hook off, or register it on the output of a sublayer.",
            )
    return None


def _changed_sum(trace: AtenTrace, stream_nodes: StreamNodes) -> NotReplaceable | None:
    """A node that reads a sum after it was changed in place reads what no node of the rewritten graph holds."""
    steps = {trace.nodes[step.node] for step in stream_nodes.steps}
    for node, inputs in enumerate(trace.node_inputs):
        if any(argument in steps and value not in stream_nodes.trunk.state_of for argument, value in inputs.items()):
            return NotReplaceable(node, "a sum is read after it was changed in place")
    return None


def _argument_with(trace: AtenTrace, node: int, value: int) -> Node | None:
    return next((argument for argument, number in trace.node_inputs[node].items() if number == value), None)


def _write_node(trace: AtenTrace, addition: Addition) -> WriteNode | NotReplaceable:
    node = trace.ops[addition.op].node
    branch = _argument_with(trace, node, addition.branch)
    is_plain = (
        trace.node_ops[node] == [addition.op]
        and trace.node_output[node] == addition.after
        and _argument_with(trace, node, addition.state) is not None
    )
    if branch is None or not is_plain:
        return NotReplaceable(node, "an addition is part of a larger operation of the captured graph")
    return WriteNode(node, branch, addition.after)


def _carry_nodes(trace: AtenTrace, steps: tuple[CarryStep, ...]) -> list[CarryNode | NotReplaceable]:
    """One for each node; a node may run several carrying operations (a reshape that copies)."""
    per_node: dict[int, list[CarryStep]] = {}
    for step in steps:
        per_node.setdefault(trace.ops[step.op].node, []).append(step)
    carries: list[CarryNode | NotReplaceable] = []
    for node, members in per_node.items():
        stream = _argument_with(trace, node, members[0].before)
        if stream is None or trace.node_output[node] != members[-1].after:
            return [NotReplaceable(node, "the stream is carried on inside a larger operation of the captured graph")]
        carries.append(CarryNode(node, _kind(members), stream, members[-1].after))
    return carries


def _kind(steps: list[CarryStep]) -> Carry:
    """The strongest of several."""
    kinds = {step.kind for step in steps}
    return next(
        kind
        for kind in (Carry.MASK, Carry.FACTOR, Carry.CAST, Carry.DETACH, Carry.PERMUTE, Carry.RESHAPE)
        if kind in kinds
    )
