"""Analysis: the RMSNorm or LayerNorm behind each depth attention of a rewritten graph.

For ::

    read_1 = torch.ops.attnres.depth_attention([x, a], key_1, 1e-06, 'mean')
    square = read_1.pow(2)
    mean_square = square.mean(-1, keepdim=True)
    shifted = operator.add(mean_square, 1e-06)
    inverse = torch.rsqrt(shifted)
    unit = operator.mul(read_1, inverse)
    normed = operator.mul(weight, unit)
    query = F.linear(normed, projection)

``norm_behind(read_1, plan)`` is ``Norm("rms", 1e-06, weight, None, output=normed, inner=(square, .., normed),
value_is_used=False)``. Nodes that need nothing but the read and vectors of its width are executed (``formula``);
the last one that gives what a norm would give is the output. All else is a ``NotFused`` with its reason. Changes
nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from attnres_passes.analyses.norms.formula import (
    DTYPES,
    NO_NORM,
    Formula,
    Kind,
    Region,
    example_tensor,
    formula_of,
    signature,
)
from attnres_passes.ir.annotations import annotation_of, read_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.plan import Plan
from attnres_passes.torch_private.example_values import example_value, size_token

MOST_NODES = 64
"""Nodes looked at behind a read, and on the way to a vector behind it; a hand-written norm has about ten."""

_READ_DTYPE_OF_OTHERS = ("type_as", "to")
"""Methods that read the dtype of their other tensors, and none of their elements."""


@dataclass(frozen=True)
class Norm:
    """A norm that reads one depth attention, and nothing else but vectors.

    weight, bias: vectors of the width of the read. Those that stand behind it in the graph are made of what stands
    before it through vectors alone, so that they can be moved there;
    inner: all nodes of the norm in graph order, the output among them; value_is_used: whether anything else reads
    the depth attention.
    """

    kind: Kind
    eps: float
    weight: Node | None
    bias: Node | None
    output: Node
    inner: tuple[Node, ...]
    value_is_used: bool


@dataclass(frozen=True)
class NotFused:
    """Why no norm can be computed together with a read."""

    reason: str


def norm_behind(read: Node, plan: Plan) -> Norm | NotFused:
    """The norm behind one read.

    Args:
        read: a depth attention of a graph of the rewritten level.
        plan: of that graph.
    """
    return _Finder(read.graph, plan).find(read)


def norm_of_readers(value: Node, readers: Collection[Node], plan: Plan) -> Norm | NotFused:
    """The norm that some readers of a value begin, in a captured graph, where a state of the stream is read by others.

    Args:
        value: a state of a stream, or any other value.
        readers: those of its users that the norm may begin with.
        plan: of the graph.
    """
    return _Finder(value.graph, plan).find_from(value, readers)


def norms_behind(
    gm: GraphModule, plan: Plan, is_read: Callable[[Node], bool] = is_depth_attention
) -> dict[Node, Norm | NotFused]:
    """``norm_behind`` of every read of a graph. What is alike is executed once.

    Args:
        gm: a graph of the rewritten level, or of a later one.
        plan: of that graph.
        is_read: which nodes are reads.
    """
    finder = _Finder(gm.graph, plan)
    return {node: finder.find(node) for node in gm.graph.nodes if is_read(node)}


@dataclass
class _Reach:
    """Nodes that need nothing but a read, vectors and dtypes, in graph order; and these vectors and templates."""

    nodes: dict[Node, None] = field(default_factory=dict)
    vectors: dict[Node, None] = field(default_factory=dict)
    templates: dict[Node, None] = field(default_factory=dict)

    def region(self, read: Node, output: Node) -> Region:
        """The nodes on the way from the read to ``output``."""
        inside, inputs, pending = {output}, set[Node](), [output]
        while pending:
            for node in pending.pop().all_input_nodes:
                inputs.add(node)
                if node in self.nodes and node not in inside:
                    inside.add(node)
                    pending.append(node)
        return Region(
            read,
            tuple(node for node in self.nodes if node in inside),
            tuple(node for node in self.vectors if node in inputs),
            tuple(node for node in self.templates if node in inputs),
        )


class _Finder:
    """Finds the norms of one graph. verdicts: what executing a region gave, by its structure."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.plan = plan
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.modes = modes(graph)
        self.verdicts: dict[tuple[Any, ...], Formula | str] = {}

    def find(self, read: Node) -> Norm | NotFused:
        refusal = self._refusal(read)
        return self.find_from(read, read.users) if refusal is None else NotFused(refusal)

    def find_from(self, read: Node, readers: Collection[Node]) -> Norm | NotFused:
        """The norm behind a value that begins with one of some readers, whatever the value is."""
        reach = self._reach(read, readers)
        best: Norm | None = None
        reason = NO_NORM
        for node in reach.nodes:
            if signature(node) != signature(read):
                continue
            region = reach.region(read, node)
            if best is not None and best.output not in region.nodes:
                continue  # another norm of the same read: the first one is fused
            verdict = self._judge(region)
            if isinstance(verdict, Norm):
                best = verdict
            else:
                reason = verdict
        return best or NotFused(reason)

    def _refusal(self, read: Node) -> str | None:
        read_id = read_of(read)
        if not self.plan.streams[read_id.stream].reads[read_id.index].normed:
            return "the read is not normed"
        value = example_value(read)
        if not isinstance(value, Tensor) or not isinstance(size_token(value.shape[-1]), int):
            return "the width of the read is not known"
        if value.dtype not in DTYPES:
            name = str(value.dtype).removeprefix("torch.").replace("float", "fp")
            return f"{name} has no generated kernel"
        return None

    def _reach(self, read: Node, readers: Collection[Node]) -> _Reach:
        reach = _Reach()
        seen: set[Node] = set()
        pending: list[tuple[int, Node]] = []

        def queue(users: Collection[Node]) -> None:
            for user in users:
                if user not in seen:
                    seen.add(user)
                    heapq.heappush(pending, (self.order[user], user))

        queue(readers)
        while pending and len(reach.nodes) < MOST_NODES:
            _, node = heapq.heappop(pending)
            others = [other for other in node.all_input_nodes if other is not read and other not in reach.nodes]
            templates = [other for other in others if _reads_dtype(node, other)]
            vectors = [other for other in others if other not in templates]
            is_call = node.op in ("call_function", "call_method") and annotation_of(node) is None
            if is_call and all(self._is_vector_beside(other, read) for other in vectors):
                reach.nodes[node] = None
                reach.vectors.update(dict.fromkeys(vectors))
                reach.templates.update(dict.fromkeys(templates))
                queue(node.users)
        return reach

    def _is_vector_beside(self, node: Node, read: Node) -> bool:
        """Whether a node is a floating vector of the width of the read, known before it or made of vectors alone."""
        value = example_value(node)
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point or value.ndim != 1:
            return False
        if size_token(value.shape[0]) != example_tensor(read).shape[-1]:
            return False
        pending, seen = [node], {node}
        while pending and len(seen) <= MOST_NODES:
            # What stands before the read cannot depend on it.
            after = {other for other in pending.pop().all_input_nodes if self.order[other] >= self.order[read]}
            if read in after or any((shown := signature(other)) is None or len(shown[0]) > 1 for other in after):
                return False
            pending.extend(after - seen)
            seen |= after
        return not pending

    def _judge(self, region: Region) -> Norm | str:
        """The norm that a region computes, or why it is none that can be fused."""
        nodes, output = set(region.nodes), region.nodes[-1]
        if any(not nodes.issuperset(node.users) for node in region.nodes[:-1]):
            return "a value inside the norm has two readers, one of them outside"
        if any(self.modes[node] != self.modes[region.read] for node in region.nodes):
            return "the norm and the read are under different grad or autocast modes"
        # Another reader could change the vector in place before the norm reads it.
        between = range(self.order[region.read], self.order[output])
        if any(self.order[user] in between for v in region.vectors for user in v.users.keys() - nodes):
            return "a vector of the norm has another reader between the read and the norm"
        key = region.key()
        if key not in self.verdicts:
            self.verdicts[key] = formula_of(region)
        formula = self.verdicts[key]
        if isinstance(formula, str):
            return formula
        weight, bias = (None if k is None else region.vectors[k] for k in (formula.weight, formula.bias))
        value_is_used = not nodes.issuperset(region.read.users)
        return Norm(formula.kind, formula.eps, weight, bias, output, region.nodes, value_is_used)


def _reads_dtype(reader: Node, node: Node) -> bool:
    """Whether ``reader`` wants nothing but the dtype of the tensor ``node``."""
    name = reader.target if reader.op == "call_method" else getattr(reader.target, "__name__", "")
    is_tensor = isinstance(example_value(node), Tensor)
    return is_tensor and name in _READ_DTYPE_OF_OTHERS and node not in reader.args[:1]


def modes(graph: Graph) -> dict[Node, Any]:
    """For every node, the modes that it runs under: brackets that are open, and what was set until further notice.

    A mode is switched by a call that neither takes nor gives a value. One whose result such a call takes opens a
    bracket, and that call closes it.
    """
    opened: dict[Node, None] = {}
    settings: dict[Any, str] = {}
    switches: set[Node] = set()
    of_nodes: dict[Node, Any] = {}
    now: Any = ((), ())
    for node in graph.nodes:
        gives_value = example_value(node) is not None or annotation_of(node) is not None
        if node.op == "call_function" and not gives_value and switches.issuperset(node.all_input_nodes):
            switches.add(node)
            for bracket in node.all_input_nodes:
                opened.pop(bracket, None)
            if not node.all_input_nodes and node.users:
                opened[node] = None
            elif not node.all_input_nodes:
                settings[node.target] = repr(node.args)
            now = tuple(opened), tuple(settings.items())
        of_nodes[node] = now
    return of_nodes
