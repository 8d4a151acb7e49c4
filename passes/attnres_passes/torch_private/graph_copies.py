"""Copies of captured graphs, with what Dynamo hangs on a graph and on its placeholders."""

from __future__ import annotations

import torch


def copied(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a captured or rewritten graph, on the same parameters."""
    graph = torch.fx.Graph()
    env: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in gm.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
        copy_dynamo_source(node, env[node])
    new = torch.fx.GraphModule(gm, graph)
    copy_dynamo_attributes(gm, new)
    return new


_DYNAMO_MODULE_ATTRIBUTES = ("_param_name_to_source", "_source_to_user_stacks")


def copy_dynamo_attributes(old: torch.fx.GraphModule, new: torch.fx.GraphModule) -> None:
    """Give a copy of a captured graph what compilers look up on the module that Dynamo made.

    Args:
        old: that module.
        new: the copy.
    """
    new.meta.update(old.meta)
    for name in _DYNAMO_MODULE_ATTRIBUTES:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))


def copy_dynamo_source(old: torch.fx.Node, new: torch.fx.Node) -> None:
    """Give a copy of a placeholder the source of its value, an attribute that copying a node leaves behind.

    Args:
        old: a node of a captured graph; nothing happens if it is no placeholder.
        new: its copy.
    """
    if old.op == "placeholder" and hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source


def source_name(node: torch.fx.Node) -> str:
    """How the frame that Dynamo compiles reaches the value of a placeholder; '' for nodes without such a source."""
    source = getattr(node, "_dynamo_source", None) if node.op == "placeholder" else None
    if source is None:
        return ""
    name = source.name
    return str(name if isinstance(name, str) else name())


def mark_as_unknown(placeholder: torch.fx.Node) -> None:
    """A placeholder that Dynamo knows nothing of."""
    placeholder._dynamo_source = None


def mark_as_added(placeholder: torch.fx.Node) -> None:
    """A placeholder that Dynamo knows nothing of, for a parameter.

    CUDA graphs take it to stay where it is, as they take the model's own parameters to: replaying does not copy it.
    """
    mark_as_unknown(placeholder)
    placeholder.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
