"""Analysis: which sublayers mix tokens (attention, convolution, recurrence), and which work token by token (MLP, MoE).

The rewritten graph is run once. What each read gives is made NaN at one token, and a write shows how far that has
spread: to one token, then no token depends on another; to several, then the sublayer mixes them. The next read is
freed of NaN first, so that each sublayer is judged by itself. No operator and no name of a module plays a part, and
zero weights hide nothing, since NaN times zero is NaN.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from attnres_compile.capture.capture import copied_input
from attnres_compile.recording.recorded import Sublayer
from attnres_passes.ir.annotations import read_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.read_id import ReadId, WriteId
from attnres_passes.rewrite.rewrite import Rewritten
from attnres_passes.torch_private.operators import is_operator
from attnres_passes.torch_private.state import restored_torch_state

log = logging.getLogger("attnres_compile")

_COLLECTIVES = ("_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "c10d")


def find_sublayers(rewritten: Rewritten, args: Sequence[Any]) -> dict[ReadId | WriteId, Sublayer]:
    """What follows each depth attention, and what makes each write; empty where that cannot be told.

    It cannot be told of a single token. A graph that talks to other processes is not run once more than they expect,
    and a model that refuses NaN is left alone, with a log line.

    Args:
        rewritten: the rewritten graph.
        args: values of its placeholders, which are left as they are, as are random state and modes.
    """
    if any(_talks(node) for node in rewritten.gm.graph.nodes):
        return {}
    spread = _Spread(rewritten)
    devices = {value.device.index for value in args if isinstance(value, Tensor) and value.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(sorted(devices)), restored_torch_state():
            spread.run(*map(copied_input, args))
    except Exception as error:
        log.warning("attnres: sublayers are not told apart, since the model does not run on NaN: %s", error)
        return {}
    if not spread.reach:
        return {}
    writes = {write: Sublayer.MIXER if reach > 1 else Sublayer.CHANNEL for write, reach in spread.reach.items()}
    return dict(itertools.chain(_before_reads(rewritten, writes).items(), writes.items()))


def _talks(node: Node) -> bool:
    return is_operator(node.target) and node.target.namespace in _COLLECTIVES


def _before_reads(rewritten: Rewritten, writes: Mapping[WriteId, Sublayer]) -> dict[ReadId, Sublayer]:
    """For each read, the sublayer of the writes of its own stream that it leads to before any other read."""
    at = _writes_behind(rewritten)
    from_reads: dict[Node, frozenset[ReadId]] = {}
    fed: dict[ReadId, set[Sublayer]] = {}
    for node in rewritten.gm.graph.nodes:
        if is_depth_attention(node):
            from_reads[node] = frozenset({read_of(node)})
            fed[read_of(node)] = set()
        else:
            from_reads[node] = frozenset().union(*map(from_reads.__getitem__, node.all_input_nodes))
        for write, branch in at.get(node, ()):
            for read in from_reads[branch]:
                if read.stream == write.stream:
                    fed[read].add(writes[write])
            from_reads[branch] = frozenset()
    order = (Sublayer.MIXER, Sublayer.CHANNEL)
    return {read: next((one for one in order if one in found), Sublayer.OUTPUT) for read, found in fed.items()}


def _writes_behind(rewritten: Rewritten) -> dict[Node, list[tuple[WriteId, Node]]]:
    """The writes that happen behind each node, each with its branch."""
    at: dict[Node, list[tuple[WriteId, Node]]] = {}
    for s, stream in enumerate(rewritten.streams):
        for k, write in enumerate(stream.writes):
            at.setdefault(write.after, []).append((WriteId(s, k), write.branch))
    return at


class _Spread(Interpreter):
    """Runs the graph with poisoned reads. reach: to how many tokens NaN has come, for each write of several tokens."""

    def __init__(self, rewritten: Rewritten) -> None:
        super().__init__(rewritten.gm)
        self.reach: dict[WriteId, int] = {}
        self.roots = {stream.root for stream in rewritten.streams}
        self.at = _writes_behind(rewritten)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.roots or is_depth_attention(n):
            result = _poisoned(result)
        for write, branch in self.at.get(n, ()):
            value = result if branch is n else self.env[branch]
            if math.prod(value.shape[:-1]) > 1:
                self.reach[write] = int(value.isnan().any(-1).sum())
        return result


def _poisoned(value: Tensor) -> Tensor:
    """A copy that is NaN at the token in the middle, which causal attention hands on, and finite elsewhere."""
    value = value.nan_to_num()
    value[tuple((size - 1) // 2 for size in value.shape[:-1])] = math.nan
    return value
