"""What the backward computes again: nodes marked for it, and the operators that run a body as it stands.

Dynamo keeps the body of a checkpoint, or of a region that is compiled once for several calls, as a module of the graph,
and its policy, if it is selective, in the ``meta`` of that module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.fx.traceback
import torch.utils.checkpoint
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

_CONTEXT_FN = "_checkpoint_context_fn"
_CHECKPOINTS = ("tag_activation_checkpoint", "wrap_activation_checkpoint")
_NESTED = "invoke_subgraph"
_UNASKED = "attnres_unasked"


def mark_for_recompute(node: Node) -> None:
    """Have the partitioner of forward and backward make the node's results again in the backward, not keep them."""
    node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    node.meta["ac_graph_id"] = 0


def is_made_again(node: Node) -> bool:
    """Whether the backward makes the node's results again, by ``mark_for_recompute``."""
    return node.meta.get("recompute") is CheckpointPolicy.MUST_RECOMPUTE


@dataclass(frozen=True)
class RegionCall:
    """A call of a region. body: the node that gives its graph; operands: what the graph is given, in order."""

    body: Node
    operands: tuple[Any, ...]
    is_checkpoint: bool


def region_call(node: Node) -> RegionCall | None:
    """What a node calls, if that is a region; None for all others."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    name = str(node.target)
    # A region that is compiled once has a name between its body and its operands.
    given = 1 if name in _CHECKPOINTS else 2 if name == _NESTED else 0
    if not given or not isinstance(node.args[0], Node) or node.args[0].op != "get_attr":
        return None
    return RegionCall(node.args[0], tuple(node.args[given:]), name in _CHECKPOINTS)


def context_fn_of(body: GraphModule) -> Callable[..., Any] | None:
    """What gives the contexts of a selective policy, of the body of a checkpoint; None without one."""
    found: Callable[..., Any] | None = body.meta.get(_CONTEXT_FN)
    return found


def leave_out_of_policies(node: Node) -> None:
    """Let no policy be asked about what a node of a checkpoint's body runs; it is computed again."""
    node.meta[_UNASKED] = True


def set_policy(body: GraphModule, context_fn: Callable[..., Any] | None) -> None:
    """Let a checkpoint of a graph follow a policy.

    Args:
        body: the graph, which keeps the policy.
        context_fn: gives the contexts of a selective policy; None for the policy that computes all of it again.
    """
    if context_fn is not None:
        body.meta[_CONTEXT_FN] = partial(_contexts, context_fn)


checkpoint_in_graph = torch.ops.higher_order.tag_activation_checkpoint
"""The checkpoint of a graph that a compiler takes apart: called with the graph, its inputs, and the user's keywords."""


def checkpoint_in_python(body: GraphModule, *operands: Any, **options: Any) -> Any:
    """The checkpoint of a graph that Python runs, with the random state of the forward.

    (``checkpoint_in_graph`` leaves the random state to a compiler: without one, it would draw another dropout mask.)

    Args:
        body: the graph, with its policy.
        operands: what it is given.
        options: keywords of the user's call.
    """
    given = {**options, "use_reentrant": False}
    context_fn = context_fn_of(body)
    if context_fn is not None:
        given["context_fn"] = context_fn

    def run(*args: Any) -> Any:
        with torch.fx.traceback.preserve_node_meta():
            return torch.fx.Interpreter(body).run(*args)

    return torch.utils.checkpoint.checkpoint(run, *operands, **given)


def _contexts(context_fn: Callable[..., Any]) -> Any:
    """The contexts of the user's policy, which then sees the operators of the user's model alone.

    A policy may count what it is asked about ("keep every second product").
    """
    contexts = context_fn()
    for context in contexts:
        policy = getattr(context, "policy_fn", None)
        if policy is not None:
            context.policy_fn = partial(_of_model, policy)
    return contexts


def _of_model(policy: Callable[..., Any], context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    if _UNASKED in torch.fx.traceback.get_current_meta():
        return CheckpointPolicy.PREFER_RECOMPUTE
    return policy(context, operator, *args, **kwargs)
