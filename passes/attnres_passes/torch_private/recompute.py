"""Nodes whose results the backward makes again."""

from __future__ import annotations

import torch
import torch.utils.checkpoint


def mark_for_recompute(node: torch.fx.Node) -> None:
    """Have the partitioner of forward and backward make the node's results again in the backward, not keep them."""
    node.meta["recompute"] = torch.utils.checkpoint.CheckpointPolicy.MUST_RECOMPUTE
    node.meta["ac_graph_id"] = 0


def is_made_again(node: torch.fx.Node) -> bool:
    """Whether the backward makes the node's results again, by ``mark_for_recompute``."""
    return node.meta.get("recompute") is torch.utils.checkpoint.CheckpointPolicy.MUST_RECOMPUTE
