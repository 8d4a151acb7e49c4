"""Nodes marked for recompute."""

from __future__ import annotations

import torch

from attnres_passes.torch_private.recompute import is_made_again, mark_for_recompute


def test_a_node_marked_for_recompute_is_made_again() -> None:
    graph = torch.fx.Graph()
    node, other = graph.placeholder("x"), graph.placeholder("y")
    mark_for_recompute(node)
    assert is_made_again(node)
    assert not is_made_again(other)
