"""Analysis: the places of an accepted stream in the captured graph, as indices of its nodes.

Chains and reads are found on values; a rewrite replaces arguments of nodes. This file says which nodes those are, or
why a stream has no such nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from attnres_passes.aten_trace import AtenTrace
from attnres_passes.chains import Addition, Candidate, Carry, CarryStep, carry_step
from attnres_passes.reads import ReadGroup, Trunk

_VIEWS = frozenset(
    f"aten.{name}" for name in ("view", "reshape", "unsqueeze", "squeeze", "alias", "detach", "permute", "transpose")
)


@dataclass(frozen=True)
class CarrySite:
    """A node that carries the stream on. stream: its argument that holds the stream."""

    node: int
    kind: Carry
    stream: Node
    before: int
    after: int


@dataclass(frozen=True)
class WriteSite:
    """A node that adds ``branch`` to the stream. after: number of the value that it makes."""

    node: int
    branch: Node
    after: int


@dataclass(frozen=True)
class ReadSite:
    """A read. state: writes its state holds; uses: (value on the stream, index of the reading node)."""

    state: int
    uses: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StreamSites:
    """Where a stream is in the graph.

    root: index of the node that gives ``s_0``; steps: carrying and writing nodes in the order of the stream.
    """

    root: int
    steps: tuple[CarrySite | WriteSite, ...]
    reads: tuple[ReadSite, ...]
    trunk: Trunk


@dataclass(frozen=True)
class NoSite:
    """A stream that cannot be replaced node by node. node: index of the node in the way."""

    node: int
    message: str


def locate(trace: AtenTrace, candidate: Candidate, trunk: Trunk, reads: tuple[ReadGroup, ...]) -> StreamSites | NoSite:
    """The nodes of a stream, or the first obstacle."""
    for read in reads:
        if read.opaque:
            return NoSite(
                read.uses[0][1],
                "it is read through an alias that was changed in place, or by an opaque operator",
            )
    if _changes_input(trace, candidate):
        return NoSite(trace.ops[candidate.additions[0].op].node, "the first addition changes an input of the model")
    steps: list[CarrySite | WriteSite] = []
    for addition in candidate.additions:
        for found in (*_carry_sites(trace, addition.carried), _write_site(trace, addition)):
            if isinstance(found, NoSite):
                return found
            steps.append(found)
    if candidate.root not in trace.node_output:
        return NoSite(steps[0].node, "the root of the stream is not the result of one node of the captured graph")
    root = trace.node_output.index(candidate.root)
    return StreamSites(root, tuple(steps), tuple(ReadSite(read.state, read.uses) for read in reads), trunk)


def _changes_input(trace: AtenTrace, candidate: Candidate) -> bool:
    """An in-place addition to an input of the graph is seen by the caller, so it cannot be taken out."""
    first = trace.ops[candidate.additions[0].op]
    if first.name != "aten.add_":
        return False
    value = first.inputs[0]
    while (step := carry_step(trace, value)) is not None and trace.ops[step.op].name in _VIEWS:
        value = step.before
    return trace.values[value].producer < 0


def _argument_with(trace: AtenTrace, node: int, value: int) -> Node | None:
    for argument, number in trace.node_inputs[node].items():
        if number == value:
            return argument
    return None


def _write_site(trace: AtenTrace, addition: Addition) -> WriteSite | NoSite:
    node = trace.ops[addition.op].node
    branch = _argument_with(trace, node, addition.branch)
    is_plain = (
        trace.node_ops[node] == [addition.op]
        and trace.node_output[node] == addition.after
        and _argument_with(trace, node, addition.state) is not None
    )
    if branch is None or not is_plain:
        return NoSite(node, "an addition is part of a larger operation of the captured graph")
    return WriteSite(node, branch, addition.after)


def _carry_sites(trace: AtenTrace, steps: tuple[CarryStep, ...]) -> list[CarrySite | NoSite]:
    """One site per node; a node may run several carrying operations (a reshape that copies)."""
    per_node: dict[int, list[CarryStep]] = {}
    for step in steps:
        per_node.setdefault(trace.ops[step.op].node, []).append(step)
    sites: list[CarrySite | NoSite] = []
    for node, members in per_node.items():
        stream = _argument_with(trace, node, members[0].before)
        if stream is None or trace.node_output[node] != members[-1].after:
            return [NoSite(node, "the stream is carried on inside a larger operation of the captured graph")]
        sites.append(CarrySite(node, _kind(members), stream, members[0].before, members[-1].after))
    return sites


def _kind(steps: list[CarryStep]) -> Carry:
    kinds = {step.kind for step in steps}
    for strongest in (Carry.MASK, Carry.CAST, Carry.PERMUTE):
        if strongest in kinds:
            return strongest
    return Carry.RESHAPE
