"""Pass: scheduled -> lowered, on torch calls (``attnres_kernels.autograd.two_phase``).

Phase 1 becomes one operator per group and phase 2 torch code that is the same for every read, so that the inner
compiler builds few kernels. Reads in place stay as they are scheduled: plain torch, fused by the inner compiler.
"""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node

from attnres_kernels.autograd import keys, two_phase
from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import ReadForm
from attnres_passes.schedule.scheduled_nodes import ScheduledRead, Segment, arguments, call, calls, items, segments


def bind_torch(gm: GraphModule) -> None:
    """Bind the groups with a phase 1 in ``gm``, in place."""
    for segment in segments(gm):
        _Binding(segment).bind()
    for node in calls(gm, scheduled.inter_block):
        gm.graph.erase_node(node)


class _Binding:
    """One segment. logits: without gradients, for phase 1; handed: the node that hands on each block."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.groups = [group for group in segment.groups if group[0].inter_block is not None]
        self.logits: dict[Node, Node] = {}
        self.handed: dict[Node, Node] = {}

    def bind(self) -> None:
        if not self.groups:
            return
        old = self.segment.keys
        ranges = [(group[0].number, len(group)) for group in self.groups]
        new = call(old, keys.key_matrix, *old.args, ranges)
        names = ("key_matrix", "keys_of_groups", "keys_of_reads")
        self.matrix, of_ranges, self.rows = (
            call(old, operator.getitem, new, index, name=name) for index, name in enumerate(names)
        )
        for index, group in enumerate(self.groups):
            self._bind_group(group, of_ranges, index)
        # Reads in place keep logits and keys with gradients; those that none of them uses go.
        for node in [node for node in old.users if not node.users]:
            old.graph.erase_node(node)
        if not old.users:
            old.graph.erase_node(old)

    def _bind_group(self, group: list[ScheduledRead], of_ranges: Node, number: int) -> None:
        phase_1 = group[0].inter_block
        assert phase_1 is not None
        given = arguments(phase_1)
        blocks = [self.handed.get(block, block) for block in given["sources"]]
        logits = [self._without_gradient(node) for node in given["logits"]]
        eps = group[0].given["eps"]
        of_group = call(phase_1, operator.getitem, of_ranges, number, name="keys_of_group")
        bound = call(phase_1, two_phase.inter_block, blocks, logits, of_group, given["first"], given["total"], eps)
        names = ("inters", "log_sums", "blocks")
        inter, log_sums, handed = (
            call(phase_1, operator.getitem, bound, index, name=name) for index, name in enumerate(names)
        )
        for index, block in enumerate(given["sources"]):
            self.handed[block] = call(phase_1, operator.getitem, handed, index, name="block")
        for index, item in items(phase_1).items():
            which, place = (inter, index) if index < len(group) else (log_sums, index - len(group))
            item.args = (which, place)
        for read in group:
            if not read.given["sources"]:
                self._bind_read(read, blocks, logits)

    def _bind_read(self, read: ScheduledRead, blocks: list[Node], logits: list[Node]) -> None:
        node, given = read.node, read.given
        if given["partial"] is None:
            rest = given["inter"], given["like"], given["factor"]
            value = call(node, two_phase.close, *rest)
        else:
            row = call(node, operator.getitem, self.rows, read.number, name=f"key_{read.number}")
            form = ReadForm(read.number, self.segment.total, given["factor"], given["eps"])
            of_phase_1 = given["inter"], given["log_sum"], given["partial"]
            value = call(node, two_phase.merge, *of_phase_1, row, blocks, logits, form)
        value.meta.update(node.meta)
        node.replace_all_uses_with(value)
        node.graph.erase_node(node)

    def _without_gradient(self, logits: Node) -> Node:
        """Logits as phase 1 takes them: it gives the sources and keys their gradients itself."""
        if logits not in self.logits:
            given = arguments(logits)
            rest = given["source"], self.matrix, given["first"], given["eps"]
            self.logits[logits] = call(logits, two_phase.source_logits, *rest, name=logits.name)
        return self.logits[logits]
