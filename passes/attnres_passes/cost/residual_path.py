"""Analysis: the residual path of a rewritten graph on its own, as a small graph.

What is kept are the residual additions, the keys, the reads, what carries sources on, and the norms behind the reads;
whatever else these take, outputs of sublayers above all, is a placeholder, and what others take of them is an output.
Its size does not depend on what the sublayers are, so that schedules can be counted and compared in milliseconds on
models of any size::

    rewritten                                        residual path
    x = embedding(ids, weight)                       x = placeholder
    read_1 = depth_attention([x, a], key_1, ..)      read_1 = depth_attention([x, a], key_1, ..)
    normed = layer_norm(read_1, ..)                  normed = layer_norm(read_1, ..)
    b = linear(gelu(linear(normed, ..), ..), ..)     b = placeholder
    partial = add(a, b)                              partial = add(a, b)

The passes after the rewrite work on it as on the whole graph. The graph given is not changed.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from attnres_passes.analyses.norms.norm_behind import Norm, norms_behind
from attnres_passes.ir.annotations import KEY, annotation_of
from attnres_passes.ir.plan import Plan
from attnres_passes.torch_private.example_values import example_value


def residual_path_of(rewritten: GraphModule, plan: Plan) -> GraphModule:
    """The residual path of a graph; its placeholders and outputs are in graph order.

    Args:
        rewritten: not changed.
        plan: of the graph.
    """
    norms = [norm for norm in norms_behind(rewritten, plan).values() if isinstance(norm, Norm)]
    kept = {node for norm in norms for node in norm.inner}
    kept |= {node for node in rewritten.graph.nodes if _is_on_residual_path(node)}
    graph = Graph()
    env: dict[Node, Node] = {}
    taken = {argument for node in kept for argument in node.all_input_nodes}
    outputs = []
    for node in rewritten.graph.nodes:
        if node in kept:
            env[node] = graph.node_copy(node, env.__getitem__)
            if any(user not in kept for user in node.users):
                outputs.append(env[node])
        elif node in taken:
            env[node] = _stand_in(graph, node)
    graph.output(tuple(outputs))
    return GraphModule(torch.nn.Module(), graph)


def _is_on_residual_path(node: Node) -> bool:
    annotation = annotation_of(node)
    if annotation is None:
        return False
    if annotation.kind == "write":
        return is_residual_add(node)
    return node.op == "placeholder" or annotation.kind in ("key", "read", "carry")


def is_residual_add(node: Node) -> bool:
    """Whether a node adds a write to an open partial sum; the first write of a block is the sum itself."""
    annotation = annotation_of(node)
    if annotation is None or annotation.kind != "write" or node.target is not torch.add:
        return False
    first = node.args[0]
    before = annotation_of(first) if isinstance(first, Node) else None
    return before is not None and before.kind in ("write", "carry")


def _stand_in(graph: Graph, node: Node) -> Node:
    """A placeholder for a value that the residual path takes, with its example value and its annotation."""
    placeholder = graph.placeholder(node.name)
    value = example_value(node)
    if value is not None:
        placeholder.meta["example_value"] = value
    if KEY in node.meta:
        placeholder.meta[KEY] = node.meta[KEY]
    return placeholder
