"""Which region of recomputation a node stands in: ``node.meta["attnres_region"]``, kept through all levels.

A region is one call of ``torch.utils.checkpoint``: the backward computes its nodes again instead of keeping them. It is
opened before the analysis, so that its nodes stand among the others, and closed again behind the last level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

KEY = "attnres_region"


@dataclass(frozen=True, eq=False)
class Region:
    """One call of a checkpoint.

    number: from 0, in the order of the calls; options: keywords of the call; context_fn: gives the contexts of a
    selective policy, None for the policy that recomputes everything; outer: the region that the call stands in.
    """

    number: int
    options: Mapping[str, Any]
    context_fn: Callable[..., Any] | None = None
    outer: Region | None = None

    @property
    def path(self) -> tuple[Region, ...]:
        """The regions around it, the outermost first, and itself."""
        return (*(() if self.outer is None else self.outer.path), self)


def region_of(node: Node) -> Region | None:
    """The innermost region that a node stands in; None if nothing computes it again."""
    region = node.meta.get(KEY)
    assert region is None or isinstance(region, Region)
    return region


def put_in_region(node: Node, region: Region | None) -> None:
    """Let a node stand in a region, or in none, wherever it stood before.

    Args:
        node: of any level.
        region: the innermost one.
    """
    if region is None:
        node.meta.pop(KEY, None)
    else:
        node.meta[KEY] = region
