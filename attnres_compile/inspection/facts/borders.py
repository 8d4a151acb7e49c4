"""Borders that a stream crosses: where a checkpoint, or a part that is compiled by itself, begins or ends.

What crosses is what later reads need: the root, the blocks that are complete, and the partial sum that is open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from attnres_compile.inspection.facts.facts import Border, Site
from attnres_passes.ir.provenance import relative_path
from attnres_passes.ir.regions import region_of

CHECKPOINT, PART = "checkpoint", "compiled part"


@dataclass(frozen=True)
class _Places:
    """What a site stands in, from the outermost on. checkpoints: numbers; parts: calls of modules."""

    checkpoints: tuple[int, ...]
    parts: tuple[str, ...]

    @classmethod
    def of(cls, node: Node, parts: Sequence[str]) -> _Places:
        region = region_of(node)
        stack = node.meta.get("nn_module_stack") or {}
        calls = tuple(call for call, (path, _) in stack.items() if relative_path(path) in parts)
        return cls(() if region is None else tuple(one.number for one in region.path), calls)


def compiled_parts(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules inside of a model that are compiled by themselves."""
    found = (
        relative_path(path)
        for path, module in model.named_modules()
        if path and (getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules)
    )
    return tuple(dict.fromkeys(found))


def with_borders(sites: Sequence[Site], nodes: Sequence[Node], parts: Sequence[str], size: int) -> Iterator[Site]:
    """The sites of a stream, each with the border right before it, if one is there.

    Args:
        sites: in the order of the stream.
        nodes: of each site, the one that reads or writes.
        parts: paths of modules that are compiled by themselves.
        size: writes of a block.
    """
    before, state = _Places((), ()), 0
    for site, node in zip(sites, nodes, strict=True):
        here = _Places.of(node, parts)
        kinds = [
            *_kinds(CHECKPOINT, before.checkpoints, here.checkpoints),
            *_kinds(PART, before.parts, here.parts),
        ]
        border = Border("; ".join(kinds), 1 + state // size, state % size > 0) if kinds else None
        yield dataclasses.replace(site, border=border)
        before, state = here, site.state


def _kinds(kind: str, before: Sequence[object], here: Sequence[object]) -> Iterator[str]:
    """What happens between two sites: "checkpoint ends, next begins"."""
    common = sum(1 for one, other in zip(before, here, strict=False) if one == other)
    ends, begins = len(before) > common, len(here) > common
    if ends and begins:
        yield f"{kind} ends, next begins"
    elif ends or begins:
        yield f"{kind} {'ends' if ends else 'begins'}"
