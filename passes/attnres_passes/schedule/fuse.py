"""Pass: scheduled -> scheduled. Each read takes the residual add before it and the norm behind it into its kernel.

Before::

    partial_2 = torch.add(partial_1, branch)
    read = merge(x, inter[0], inter[3], [], [], partial_2, keys, 0, 1.0, 1e-06)
    norm = layer_norm(read, (768,), weight, bias, 1e-05)

After::

    fused = fused_merge(x, inter[0], inter[3], [], [], partial_1, keys, 0, 1.0, 1e-06, Neighbours(branch, 'layer', ..))
    norm = fused[1]
    partial_2 = fused[2]

An add that completes a block goes into the kernel that makes the block's logits (``complete_block``). For generated
kernels only: torch calls are fused by the inner compiler. What is not fused stays a call of its own, with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import Neighbours
from attnres_passes.analyses.norms.norm_behind import Norm, NotFused, modes, norms_behind
from attnres_passes.ir.annotations import annotate, annotation_of, read_of
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ir.regions import region_of
from attnres_passes.schedule.scheduled_nodes import arguments, call, calls
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.graph_copies import copied

_FUSED: dict[Any, Callable[..., Any]] = {
    scheduled.merge: scheduled.fused_merge,
    scheduled.direct_read: scheduled.fused_direct_read,
    scheduled.own_logits_read: scheduled.fused_own_logits_read,
}


@dataclass(frozen=True)
class Fused:
    """A scheduled graph whose reads have taken in their neighbours.

    adds, norms: how many were fused with reads; blocks: adds that complete a block, fused with its logits; not_fused:
    why the norms behind the other reads are not.
    """

    gm: GraphModule
    adds: int
    norms: int
    blocks: int
    not_fused: Mapping[ReadId, str]

    def __str__(self) -> str:
        lines = [f"{self.adds} adds and {self.norms} norms fused with reads, {self.blocks} adds with logits"]
        lines += [f"read {read}: norm not fused, {why}" for read, why in self.not_fused.items()]
        return "\n".join(lines)


def fuse(scheduled_gm: GraphModule, plan: Plan) -> Fused:
    """A copy of a scheduled graph in which every read has taken in its neighbours.

    Args:
        scheduled_gm: for generated kernels.
        plan: of the whole model.
    """
    gm = copied(scheduled_gm)
    reads = calls(gm, *_FUSED)
    norms = {
        read: _in_region(read, norm)
        for read, norm in norms_behind(gm, plan, lambda node: node.target in _FUSED).items()
    }
    of_graph = _Graph(gm)
    adds, fused_norms, not_fused = 0, 0, {}
    for read in reads:
        norm = norms[read]
        if isinstance(norm, NotFused):
            not_fused[read_of(read)] = norm.reason
        fused_norms += isinstance(norm, Norm)
        adds += of_graph.fuse_read(read, norm if isinstance(norm, Norm) else None)
    blocks = sum(of_graph.fuse_block(logits) for logits in calls(gm, scheduled.source_logits))
    gm.recompile()
    return Fused(gm, adds, fused_norms, blocks, not_fused)


def _in_region(read: Node, norm: Norm | NotFused) -> Norm | NotFused:
    if isinstance(norm, Norm) and any(region_of(node) is not region_of(read) for node in norm.inner):
        return NotFused("the backward computes the norm and the read again in different places")
    return norm


class _Graph:
    """The graph that is being changed. order, modes: of its nodes before any change."""

    def __init__(self, gm: GraphModule) -> None:
        self.order = {node: index for index, node in enumerate(gm.graph.nodes)}
        self.modes = modes(gm.graph)

    def fuse_read(self, read: Node, norm: Norm | None) -> bool:
        """Put a fused read in place of ``read`` and its neighbours; whether an add was among them."""
        add = self._add_before(read)
        if norm is None and add is None:
            return False
        branch: Any = None
        if add is not None:
            partial, branch = add.args
            assert isinstance(partial, Node)
            read.replace_input_with(add, partial)
        for vector in (norm.weight, norm.bias) if norm is not None else ():
            if vector is not None:
                self._move_before(vector, read)
        behind = () if norm is None else (norm.kind, norm.eps, norm.weight, norm.bias)
        fused = call(read, _FUSED[read.target], *read.args, Neighbours(branch, *behind))
        annotation = annotation_of(read)
        assert annotation is not None
        annotate(fused, replace(annotation, kind="schedule"))
        outputs = [
            (read, 0),
            *([(norm.output, 1)] if norm is not None else []),
            *([(add, 2)] if add is not None else []),
        ]
        for old, index in outputs:
            new = call(read, operator.getitem, fused, index, name=("read", "normed", "partial")[index])
            new.meta.update(old.meta)
            if index == 1:
                annotate(new, replace(annotation, kind="norm"))
            old.replace_all_uses_with(new)
            self.order[new] = self.order[read]
            self.modes[new] = self.modes[read]
        self.order[fused] = self.order[read]
        for node in reversed((read, *(norm.inner if norm is not None else ()))):
            node.graph.erase_node(node)
        if add is not None:
            add.graph.erase_node(add)
        return add is not None

    def fuse_block(self, logits: Node) -> bool:
        """Let the kernel that makes the logits of a block complete it first."""
        given = arguments(logits)
        add = given["source"]
        if not self._can_be_made_by(logits, add):
            return False
        fused = call(logits, scheduled.complete_block, *add.args, given["keys"], given["first"], given["eps"])
        for old, index in ((add, 0), (logits, 1)):
            new = call(logits, operator.getitem, fused, index, name=("block", "logits")[index])
            new.meta.update(old.meta)
            old.replace_all_uses_with(new)
            self.order[new] = self.order[logits]
            self.modes[new] = self.modes[logits]
        logits.graph.erase_node(logits)
        add.graph.erase_node(add)
        return True

    def _add_before(self, read: Node) -> Node | None:
        """The add that makes the open partial sum of a read, if the read's kernel can do it; of a read with own logits
        also the one that completes its last block.
        """
        given = arguments(read)
        last = given["sources"][-1] if read.target is scheduled.own_logits_read else given["partial"]
        return last if last is not None and self._can_be_made_by(read, last) else None

    def _can_be_made_by(self, node: Node, add: Node) -> bool:
        """Whether ``add`` is an addition of ours that nothing needs before ``node``, in the same region and modes.

        In another region, its two operands would be kept in place of its sum.
        """
        annotation = annotation_of(add)
        if (
            annotation is None
            or annotation.kind != "write"
            or add.target is not torch.add
            or self.modes[add] != self.modes[node]
            or region_of(add) is not region_of(node)
        ):
            return False
        values = [example_value(operand) for operand in add.args if isinstance(operand, Node)]
        if len(values) != 2 or any(value is None for value in values):
            return False
        one, other = values
        same = one.dtype == other.dtype and one.device == other.device and one.shape == other.shape
        return same and all(self.order[user] >= self.order[node] for user in add.users)

    def _move_before(self, vector: Node, read: Node) -> None:
        """A vector that the norm takes, and what makes it, where the read can take it."""
        for node in vector.all_input_nodes:
            if self.order[node] > self.order[read]:
                self._move_before(node, read)
        if self.order[vector] > self.order[read]:
            read.prepend(vector)
            self.order[vector] = self.order[read]
