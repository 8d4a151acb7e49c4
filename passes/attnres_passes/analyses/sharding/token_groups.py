"""Analysis: the groups of ranks over which the tokens of a residual stream are cut.

Where a stream is a DTensor, it says so itself. Where it is the plain tensor that a rank holds, as
``parallelize_module`` leaves it, what is added to it was taken out of a DTensor (``to_local``) and what is read of it
is made one again (``from_local``): these say what the tensor is a part of. A write by hand may come from a
reduce-scatter.

Every rank that holds tokens of its own makes reads of them with the same queries. The gradient of a query is then a
sum over those ranks, which nothing but this analysis can know of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attnres_kernels.errors import AttnResError
from attnres_passes.analyses.aten_trace import LOCAL_PART, SPREAD, AtenTrace
from attnres_passes.analyses.stream_nodes import StreamNodes, WriteNode
from attnres_passes.ir import provenance
from attnres_passes.torch_private.ranks.dtensors import Part, Placed

_SCATTER = "_c10d_functional.reduce_scatter_tensor"


class ShardedStreamError(AttnResError):
    """Parts of a model do not agree about how its residual stream is spread over ranks."""


@dataclass(frozen=True)
class TokenGroups:
    """Names of the groups of ranks that hold different tokens. stream: of the plain tensor that is here; reads: of the
    state that each read is of, which is a DTensor of its own.
    """

    stream: tuple[str, ...]
    reads: tuple[tuple[str, ...], ...]


def token_groups(trace: AtenTrace, nodes: StreamNodes, known: Iterable[str] = ()) -> TokenGroups:
    """The groups of ranks over which the tokens of a stream are cut; none where all ranks hold all of them.

    Args:
        trace: of the captured graph.
        nodes: where the stream is in it.
        known: groups that the graph before this one has found, for a stream that comes in.

    Raises:
        ShardedStreamError: it is cut over a group in one place, and whole on all of its ranks in another.
    """
    found = _Groups(trace, nodes)
    if any(trace.values[value].placed is not None for value in nodes.trunk.order):
        return TokenGroups((), tuple(tuple(found.of_state(read.uses[0][0])) for read in nodes.reads))
    cut, whole = dict.fromkeys(known), dict[str, int]()
    for group, part, place in found.facts():
        if isinstance(part, int):
            cut[group] = None
        elif part == "whole":
            whole.setdefault(group, place)
    for group in cut:
        if group in whole:
            raise ShardedStreamError(
                f"the residual stream is cut along its tokens over the process group {group!r}, and taken to be whole "
                f"on each of its ranks at {provenance.source_line(trace.nodes[whole[group]])}, so that the gradients "
                "of its queries cannot be summed. Give the module there the layout that the stream has "
                "(SequenceParallel, or input_layouts=Shard(1))."
            )
    return TokenGroups(tuple(cut), (tuple(cut),) * len(nodes.reads))


Fact = tuple[str, Part, int]
"""A group, what its ranks hold of the stream, and the index of the node that says so."""


class _Groups:
    """Looks at one stream."""

    def __init__(self, trace: AtenTrace, nodes: StreamNodes) -> None:
        self.trace, self.nodes = trace, nodes
        self.leading = trace.values[nodes.trunk.order[0]].shape[:-1]

    def of_state(self, value: int) -> Iterator[str]:
        """The groups over which a state that is a DTensor is cut."""
        placed = self.trace.values[value].placed
        if placed is not None:
            yield from (group for group, part in zip(placed.groups, placed.parts, strict=True) if self._is_cut(part))

    def _is_cut(self, part: Part) -> bool:
        """Along tokens: a cut along features is none."""
        return isinstance(part, int) and part < len(self.leading)

    def facts(self) -> Iterator[Fact]:
        """What the graph says of a stream of plain tensors."""
        trace = self.trace
        if not any(op.name in (LOCAL_PART, SPREAD, _SCATTER) for op in trace.ops):
            return
        yield from self._behind([self.nodes.trunk.order[0]])
        for step in self.nodes.steps:
            if isinstance(step, WriteNode):
                yield from self._behind([trace.node_inputs[step.node][step.branch]])
        for read in self.nodes.reads:
            for value, user in read.uses:
                yield from self._ahead(value, user)

    def _of(self, placed: Placed | None, op: int) -> Iterator[Fact]:
        """Of a tensor with the tokens of the stream."""
        if placed is not None:
            for group, part in zip(placed.groups, placed.parts, strict=True):
                if part == "whole" or self._is_cut(part):
                    yield group, part, self.trace.ops[op].node

    def _has_tokens(self, value: int) -> bool:
        """Whether a tensor has one vector for each token of the stream that is here."""
        return self.trace.values[value].shape[:-1] == self.leading

    def _behind(self, pending: list[int]) -> Iterator[Fact]:
        """Where values were taken out of DTensors, without a change of their tokens since."""
        seen = set(pending)
        while pending:
            producer = self.trace.values[pending.pop()].producer
            op = self.trace.ops[producer] if producer >= 0 else None
            if op is None:
                continue
            if op.name == LOCAL_PART:
                yield from self._of(self.trace.values[op.inputs[0]].placed, op.index)
            elif op.name == _SCATTER:
                yield str(op.args[-1]), 0, op.node
            else:
                fresh = [value for value in op.inputs if value not in seen and self._goes_back_to(value)]
                seen.update(fresh)
                pending.extend(fresh)

    def _goes_back_to(self, value: int) -> bool:
        return self._has_tokens(value) and value not in self.nodes.trunk.state_of

    def _ahead(self, state: int, user: int) -> Iterator[Fact]:
        """Where what is read of a state is made a DTensor, with the tokens that the state has."""
        pending = [op for op in self.trace.users[state] if self.trace.ops[op].node == user]
        seen = set(pending)
        while pending:
            op = self.trace.ops[pending.pop()]
            if op.index in self.nodes.trunk.ops or op.name == LOCAL_PART:
                continue
            if op.name == SPREAD:
                yield from self._of(self.trace.values[op.outputs[0]].placed, op.index)
                continue
            users = [one for value in op.outputs if self._has_tokens(value) for one in self.trace.users[value]]
            fresh = [one for one in users if one not in seen]
            seen.update(fresh)
            pending.extend(fresh)
