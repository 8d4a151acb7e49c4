"""Pass: scheduled -> lowered, on generated kernels (``attnres_kernels.autograd.generated_reads``).

Before::

    keys = key_matrix([query_0, ..], [key_weight_0, ..])
    inter = inter_block([x, block_1], [logits_x, logits_1], 0, 3, 24)
    read = fused_merge(x, inter[0], inter[3], [], [], partial, keys, 0, .., Neighbours(branch, 'rms', ..))

After::

    keys = key_matrix([query_0, ..], [key_weight_0, ..], [(0, 3), ..])      # a copy for each set's gradient
    inter = phase_1([x, block_1], [logits_x, logits_1], 0, 3, 24)           # made again in the backward
    links, blocks = link_sources([x, block_1], [logits_x, logits_1], ..)    # one gradient per block, from all its reads
    parts = ReadParts(inter[0], inter[3], [], [], partial, key_0)
    read = read([(links, 0)], parts, ReadForm(0, ..), x, Neighbours(branch, 'rms', ..))

A read that makes its own logits is a call of ``own_logits_read``, without links.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, groupby
from typing import Any

from torch.fx import GraphModule, Node

from attnres_kernels.autograd import generated_reads, keys, own_logits_reads
from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import ALONE, Neighbours, ReadForm, ReadParts
from attnres_kernels.launch.split_sources_backward import traffic_of_launches
from attnres_passes.ir.annotations import Annotation, annotation_of
from attnres_passes.ir.levels import FUSED, OWN_LOGITS_READS
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.regions import region_of
from attnres_passes.lower.gradient_sets import GradientSet, gradient_passes
from attnres_passes.schedule.scheduled_nodes import ScheduledRead, Segment, arguments, call, calls, items, segments
from attnres_passes.torch_private.recompute import mark_for_recompute


def bind_kernels(gm: GraphModule, plan: Plan, keeps_values: bool) -> None:
    """Bind every node of the scheduled level, in place: ``lower`` has copied the graph.

    Args:
        gm: the copy.
        plan: of the whole model.
        keeps_values: have every kernel write the value of its read, although nothing but the norm behind may need it.
    """
    for segment in segments(gm):
        _Binding(segment, plan, keeps_values).bind()
    for node in calls(gm, *OWN_LOGITS_READS):
        _bind_own_logits_read(node, keeps_values)
    for node in calls(gm, scheduled.inter_block):
        node.target = generated_reads.phase_1
        mark_for_recompute(node)


class _Binding:
    """One segment. handed: the node that hands on each block; row_of: the key of each read."""

    def __init__(self, segment: Segment, plan: Plan, keeps_values: bool) -> None:
        self.segment, self.total, self.keeps_values = segment, segment.total, keeps_values
        self.handed: dict[Node, Node] = {}
        self.passes = list(_passes(segment, plan))

    def bind(self) -> None:
        ranges = [(of_set.first, of_set.reads) for _, sets in self.passes for of_set in sets]
        old = self.segment.keys
        new = call(old, keys.key_matrix, *old.args, ranges)
        names = ("key_matrix", "keys_of_sets", "keys_of_reads")
        matrix, of_ranges, rows = (call(old, operator.getitem, new, k, name=name) for k, name in enumerate(names))
        self.rows = rows
        for user in list(old.users):
            if user.target in (scheduled.source_logits, scheduled.complete_block):
                user.replace_input_with(old, matrix)
                user.target = getattr(generated_reads, user.target.__name__)
        of_sets = iter(range(len(ranges)))
        for reads, sets in self.passes:
            links: list[tuple[int, Node]] = []
            for read in reads:
                for of_set in sets:
                    if of_set.first == read.number:
                        key = call(read.node, operator.getitem, of_ranges, next(of_sets), name="keys_of_set")
                        links.append((of_set.first, self._link(read, of_set, key)))
                self._bind_read(read, links)
        old.graph.erase_node(old)

    def _link(self, read: ScheduledRead, of_set: GradientSet, key: Node) -> Node:
        """Tie the blocks of a set, whose first read this is, to its reads; gives the node of the links."""
        blocks, logits = (of_read[of_set.start : of_set.stop] for of_read in (read.completed, read.logits))
        given = [self.handed.get(block, block) for block in blocks]
        linked = call(
            read.node, generated_reads.link_sources, given, logits, key, of_set.first, self.total, read.given["eps"]
        )
        links = call(read.node, operator.getitem, linked, 0, name="links")
        handed = call(read.node, operator.getitem, linked, 1, name="blocks")
        for index, block in enumerate(blocks):
            self.handed[block] = call(read.node, operator.getitem, handed, index, name="block")
        return links

    def _bind_read(self, read: ScheduledRead, links: list[tuple[int, Node]]) -> None:
        node, given = read.node, read.given
        row: Any = None
        if given["partial"] is not None:
            row = call(node, operator.getitem, self.rows, read.number, name=f"key_{read.number}")
        parts = ReadParts(
            given.get("inter"), given.get("log_sum"), given["sources"], given["logits"], given["partial"], row
        )
        form = ReadForm(read.number, self.total, given["factor"], given["eps"])
        places = [(of_set, read.number - first) for first, of_set in links]
        neighbours = _neighbours(node, given, self.keeps_values)
        bound = call(node, generated_reads.read, places, parts, form, read.completed[0], neighbours)
        _put_in_place(node, bound, neighbours)


def _bind_own_logits_read(node: Node, keeps_values: bool) -> None:
    """A read with own logits, which has nothing in common with other reads."""
    given = arguments(node)
    *blocks, last = given["sources"]
    form = (given[name] for name in ("query", "weight", "factor", "eps"))
    neighbours = _neighbours(node, given, keeps_values)
    bound = call(node, own_logits_reads.own_logits_read, blocks, last, *form, neighbours)
    _put_in_place(node, bound, neighbours)


def _value_is_used(node: Node) -> bool:
    """Whether anything but the norm fused with a read takes its value."""
    if node.target not in FUSED:
        return True
    value = items(node).get(0)
    return value is not None and bool(value.users)


def _neighbours(node: Node, given: Mapping[str, Any], keeps_values: bool) -> Neighbours:
    """What is fused with a scheduled read, and whether its kernel writes the value."""
    neighbours: Neighbours = given.get("neighbours", ALONE)
    return neighbours._replace(returns_value=keeps_values or _value_is_used(node))


def _put_in_place(node: Node, bound: Node, neighbours: Neighbours) -> None:
    """Let ``bound``, whose results are only those that are made, stand for the scheduled read ``node``."""
    if node.target not in FUSED:
        value = call(node, operator.getitem, bound, 0)
        value.meta.update(node.meta)
        node.replace_all_uses_with(value)
    made = neighbours.results()
    for index, item in items(node).items() if node.target in FUSED else ():
        if made[index]:
            item.args = (bound, sum(made[:index]))
        else:
            assert not item.users
            item.graph.erase_node(item)
    node.graph.erase_node(node)


def _passes(segment: Segment, plan: Plan) -> Iterator[tuple[list[ScheduledRead], tuple[GradientSet, ...]]]:
    """The reads of each pass of the backward over their blocks, and the sets of blocks; of one pipeline stage each, and
    of one region, since gradients of reads in several regions would be kept from the last to the first.
    """
    reads_in_order = chain.from_iterable(segment.groups)
    for _, together in groupby(reads_in_order, key=lambda read: (_annotation(read).stage, region_of(read.node))):
        reads = list(together)
        moves = partial(traffic_of_launches, width=plan.streams[_annotation(reads[0]).stream].width)
        start = reads[0].number
        for found in gradient_passes([len(read.completed) for read in reads], moves, start):
            yield reads[found.first - start : found.first - start + found.reads], found.sets


def _annotation(read: ScheduledRead) -> Annotation:
    annotation = annotation_of(read.node)
    assert annotation is not None
    return annotation
