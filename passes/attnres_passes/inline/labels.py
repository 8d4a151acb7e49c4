"""Module paths of a body that several layers share: those of the layer that calls it.

Dynamo traces such a body once, in the layer that calls it first, and its nodes are labelled with that layer's modules
(``h.0.mlp``). A later call differs in what it is given: parameters of ``h.3.mlp`` where the first one had those of
``h.0.mlp`` say that ``h.0`` stands for ``h.3`` there. So do, where there is no parameter, the modules that call and
those that made the other operands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from attnres_passes.ir import provenance

_STACK = "nn_module_stack"


@dataclass(frozen=True)
class Labels:
    """The modules around one call of a body. caller: that calls; owners: of each operand that is a parameter or a
    buffer, else ''; makers: of each other operand, else ''.
    """

    caller: str
    owners: tuple[str, ...]
    makers: tuple[str, ...]

    @classmethod
    def of(cls, node: Node, operands: Sequence[Any], relabelling: Relabelling | None) -> Labels:
        """The labels of a call.

        Args:
            node: the call, as it was captured.
            operands: of the graph that the body is copied to.
            relabelling: of the body that the call stands in.
        """
        caller = provenance.module_path(node)
        caller = caller if relabelling is None else relabelling.path(caller)
        owners = tuple(provenance.owner_path(one) if isinstance(one, Node) else "" for one in operands)
        makers = tuple(
            provenance.module_path(one) if isinstance(one, Node) and not owner else ""
            for one, owner in zip(operands, owners, strict=True)
        )
        return cls(caller, owners, makers)

    def relabelling(self, first: Labels, around: Relabelling | None) -> Relabelling | None:
        """From the labels of the body, which are those of its first call, to those of this call.

        Args:
            first: labels of that call.
            around: relabelling of the body that this call stands in.
        """
        renamed = dict(around.renamed) if around is not None else {}
        found: dict[str, str] = {}
        for before, after in (*self._certain(first), *self._likely(first)):
            found.setdefault(before, after)
        renamed.update(found)
        return Relabelling(renamed) if renamed else None

    def _certain(self, first: Labels) -> Iterator[tuple[str, str]]:
        for before, after in ((first.caller, self.caller), *zip(first.owners, self.owners, strict=True)):
            if before and after and before != after:
                yield _without_common_end(before, after)

    def _likely(self, first: Labels) -> Iterator[tuple[str, str]]:
        """What made an operand stands elsewhere in the same way: a path that differs in numbers alone."""
        for before, after in zip(first.makers, self.makers, strict=True):
            parts = before.split("."), after.split(".")
            if before == after or len(parts[0]) != len(parts[1]):
                continue
            if all(one == other or (one + other).isdigit() for one, other in zip(*parts, strict=True)):
                yield _without_common_end(before, after)


@dataclass(frozen=True)
class Relabelling:
    """renamed: module paths of a body, and what stands in their place at a call."""

    renamed: dict[str, str]

    def path(self, path: str) -> str:
        """The path of a module at the call: the longest part that is renamed is."""
        parts = path.split(".")
        for stop in range(len(parts), 0, -1):
            after = self.renamed.get(".".join(parts[:stop]))
            if after is not None:
                return ".".join([after, *parts[stop:]])
        return path

    def relabel(self, node: Node) -> None:
        """Let a node stand in the modules of the call."""
        stack = node.meta.get(_STACK)
        if stack:
            node.meta[_STACK] = {
                key: (self.path(provenance.relative_path(path)), kind) for key, (path, kind) in stack.items()
            }


def _without_common_end(before: str, after: str) -> tuple[str, str]:
    """``h.0.mlp`` and ``h.3.mlp`` differ in ``h.0`` and ``h.3``."""
    left, right = before.split("."), after.split(".")
    while len(left) > 1 and len(right) > 1 and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return ".".join(left), ".".join(right)
