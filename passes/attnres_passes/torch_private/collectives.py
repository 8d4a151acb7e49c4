"""Collectives in a graph, and what calls of torch.distributed become in a captured one.

Run with several ranks in tests/end_to_end/test_sequence_shards.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch


def group_place(name: str) -> tuple[int, int]:
    """Size of the process group with this name, and the rank of this process in it.

    Raises:
        LookupError: there is no such group here.
    """
    from torch.distributed import distributed_c10d

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise LookupError("torch.distributed is not initialised")
    try:
        group = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
    except (ValueError, RuntimeError) as error:
        raise LookupError(f"no process group has this name ({error})") from error
    return group.size(), group.rank()


def all_gather(part: torch.Tensor, size: int, group: str) -> torch.Tensor:
    """The parts of all ranks, one behind the other along the first dimension.

    Args:
        part: of this rank, ``[n, ..]``.
        size: number of ranks.
        group: name of the process group.
    """
    operators = torch.ops._c10d_functional
    return cast(torch.Tensor, operators.wait_tensor(operators.all_gather_into_tensor(part, size, group)))


def reduce_scatter(whole: torch.Tensor, size: int, group: str) -> torch.Tensor:
    """This rank's part, along the first dimension, of the sum over all ranks.

    Args:
        whole: what is summed, ``[size * n, ..]``.
        size: number of ranks.
        group: name of the process group.
    """
    operators = torch.ops._c10d_functional
    return cast(torch.Tensor, operators.wait_tensor(operators.reduce_scatter_tensor(whole, "sum", size, group)))


def all_reduce(own: torch.Tensor, group: str) -> torch.Tensor:
    """The sum over all ranks.

    Args:
        own: what this rank adds.
        group: name of the process group.
    """
    operators = torch.ops._c10d_functional
    return cast(torch.Tensor, operators.wait_tensor(operators.all_reduce(own, "sum", group)))


@dataclass(frozen=True)
class AllReduced:
    """A sum over ranks in a graph. given: what is summed; nodes: what does so, from the first one on."""

    given: torch.fx.Node
    nodes: tuple[torch.fx.Node, ...]


def all_reduced(value: torch.fx.Node, group: str) -> AllReduced | None:
    """The sum over the ranks of a group that a value is, made out of place or in place; None if it is no such sum.

    Args:
        value: any node.
        group: name of the process group.
    """
    summed = value
    copy: tuple[torch.fx.Node, ...] = ()
    for user in value.users:
        if user.target == "copy_" and user.args[0] is value and isinstance(user.args[1], torch.fx.Node):
            summed, copy = user.args[1], (user,)
    reduced = summed.args[0] if _calls(summed, "wait_tensor") else None
    if not isinstance(reduced, torch.fx.Node) or not _calls(reduced, "all_reduce"):
        return None
    given, kind, of_group = reduced.args
    if (kind, of_group) != ("sum", group) or not isinstance(given, torch.fx.Node) or (copy and given is not value):
        return None
    return AllReduced(given, (reduced, summed, *copy))


def _calls(node: torch.fx.Node, name: str) -> bool:
    operator = getattr(torch.ops._c10d_functional, name)
    return node.op == "call_function" and node.target in (operator, operator.default)
