"""Analysis: the chunks that run each node of a rewritten graph.

A node that depends on a sublayer runs with it. Any other node runs where it is used: in one chunk, or, if it is made
of inputs, constants and buffers alone, as a copy in each of them, since that is cheaper than sending it. What
switches a state of torch (grad mode, autocast, levels of vmap) runs everywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.fx import GraphModule, Node

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.plan import short_source
from attnres_passes.ranks.layout import StageError
from attnres_passes.ranks.positions import Positions
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.operators import is_operator

Chunks = dict[Node, frozenset[int]]
_PURE_MODULES = ("_operator", "builtins", "math")


def chunks_of_nodes(gm: GraphModule, positions: Positions, cuts: Sequence[int], trace: AtenTrace) -> Chunks:
    """The chunks of every node but the output; none for what nothing needs. trace: of a copy of ``gm``, node for node.

    Raises StageError: a parameter is used in several chunks, or something random or changed in place would be.
    """
    nodes = list(gm.graph.nodes)
    changed = _changed_storages(nodes, trace)
    fixed: Chunks = {
        node: frozenset([bisect_left(cuts, position) - 1])
        for node in nodes
        if (position := positions.of[node]) is not None and node.op != "output"
    }
    together: Chunks = {}
    while True:
        found = _spread(nodes, fixed, together, len(cuts) - 1, {node for group in changed for node in group})
        wider = _unequal(changed, found)
        if wider is None:
            _check_copies(nodes, found, _random_nodes(nodes, trace))
            return found
        group, union = wider
        stuck = next((node for node in group if node in fixed or node.op == "placeholder"), None)
        if stuck is not None:
            raise StageError(
                f"{described(stuck)} is changed in place, and chunks {_listed(union)} use it; write the change as a "
                "new tensor, or choose cut points that leave it inside one chunk."
            )
        together.update(dict.fromkeys(group, union))


def described(node: Node) -> str:
    """A node for an error message: its module, source line and name."""
    where = ", ".join(
        part for part in (provenance.module_path(node), short_source(provenance.source_line(node))) if part
    )
    return f"the value {node.name!r}" + (f" ({where})" if where else "")


def is_parameter(node: Node) -> bool:
    """Whether a placeholder stands for a parameter: the model's, or one that the rewrite added."""
    annotation = annotation_of(node)
    return (annotation is not None and annotation.kind == "parameter") or isinstance(example_value(node), nn.Parameter)


def _spread(nodes: Sequence[Node], fixed: Chunks, together: Chunks, chunks: int, changed: set[Node]) -> Chunks:
    """From the users of each node to its chunks."""
    everywhere = frozenset(range(chunks))
    found: Chunks = {}
    for node in reversed(nodes):
        if node.op == "output":
            found[node] = frozenset([chunks - 1])
        elif node in fixed:
            found[node] = fixed[node]
        elif _switches_state(node):
            found[node] = everywhere
        elif not node.users and node in changed:
            found[node] = together.get(node, frozenset([0]))
        else:
            found[node] = frozenset().union(together.get(node, ()), *(found[user] for user in node.users))
    return found


def _switches_state(node: Node) -> bool:
    """A call that neither takes nor gives a tensor nor is arithmetic: a switch of the grad mode, and what undoes it."""
    return (
        node.op == "call_function"
        and not isinstance(example_value(node), torch.Tensor)
        and not any(_gives_tensor(source) for source in node.all_input_nodes)
        and getattr(node.target, "__module__", None) not in _PURE_MODULES
    )


def _gives_tensor(node: Node) -> bool:
    return isinstance(example_value(node), torch.Tensor) or annotation_of(node) is not None


def _changed_storages(nodes: Sequence[Node], trace: AtenTrace) -> list[list[Node]]:
    """For each storage that an operation changes in place, the nodes that give it, and those that change it."""
    groups: dict[int, set[int]] = {}
    for op in trace.ops:
        for value in op.changes:
            groups.setdefault(trace.values[value].storage, set()).add(op.node)
    for index, given in enumerate(trace.node_output):
        if given is not None and trace.values[given].storage in groups:
            groups[trace.values[given].storage].add(index)
    return [[nodes[index] for index in sorted(group)] for group in groups.values()]


def _unequal(groups: list[list[Node]], found: Chunks) -> tuple[list[Node], frozenset[int]] | None:
    """The first group whose nodes do not all run in the same chunks, and all its chunks."""
    for group in groups:
        union = frozenset[int]().union(*(found[node] for node in group))
        if any(found[node] != union for node in group):
            return group, union
    return None


def _check_copies(nodes: Sequence[Node], found: Chunks, random: set[Node]) -> None:
    """Raise StageError for the first node that must not run in several chunks and does."""
    refusals: tuple[tuple[Callable[[Node], bool], str], ...] = (
        (
            is_parameter,
            "is a parameter that chunks {chunks} use ({users}); each parameter belongs to one chunk. Untie the "
            "weights, or choose cut points that keep its uses in one chunk.",
        ),
        (
            random.__contains__,
            "is random, and chunks {chunks} use it ({users}); each would draw another. Draw it outside of the "
            "model and pass it as an input.",
        ),
    )
    for node in nodes:
        if len(found[node]) < 2:
            continue
        for is_refused, why in refusals:
            if is_refused(node):
                users = ", ".join(dict.fromkeys(provenance.module_path(user) or user.name for user in node.users))
                raise StageError(f"{described(node)} {why.format(chunks=_listed(found[node]), users=users)}")


def _random_nodes(nodes: Sequence[Node], trace: AtenTrace) -> set[Node]:
    return {
        nodes[op.node]
        for op in trace.ops
        if is_operator(op.target) and torch.Tag.nondeterministic_seeded in op.target.tags
    }


def _listed(chunks: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(chunks)))
