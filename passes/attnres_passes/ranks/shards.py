"""What a graph with sharded blocks calls: cut along the sequence, put together again, summed and cut at once.

Rank ``r`` of ``P`` holds the tokens from ``r * ceil(T / P)`` up to ``(r + 1) * ceil(T / P)``; zeros stand for tokens
behind the last one, so that all ranks hold tensors of one shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attnres_kernels.errors import AttnResError
from attnres_passes.torch_private import collectives


class SequenceError(AttnResError):
    """A stream cannot be cut along the sequence, or not over this group; the message says what to do."""


DIMENSION = -2
"""The dimension along which the stream is cut: the one before its features."""


@dataclass(frozen=True)
class Shards:
    """The ranks of the process group with this name, and which of them this process is."""

    group: str
    size: int
    rank: int

    @classmethod
    def of(cls, group: str) -> Shards:
        """The ranks of a process group, and which of them this process is.

        Raises:
            SequenceError: there is no group with this name here.
        """
        try:
            size, rank = collectives.group_place(group)
        except LookupError as error:
            raise SequenceError(
                f"sequence_group={group!r}: {error}; initialise torch.distributed first, and give group.group_name."
            ) from error
        return cls(group, size, rank)


def shard(whole: Tensor, size: int, rank: int) -> Tensor:
    """The tokens of one rank, ``[.., ceil(T / size), d]``: a copy, so that the whole can be freed.

    Args:
        whole: ``[.., T, d]``.
        size: number of ranks.
        rank: whose tokens.
    """
    length = _shard_length(whole, size)
    return _padded(whole, size).narrow(DIMENSION, rank * length, length).clone(memory_format=torch.contiguous_format)


def gather(part: Tensor, length: int, size: int, group: str) -> Tensor:
    """The tokens of all ranks, ``[.., T, d]``.

    Args:
        part: those of this rank, ``[.., ceil(T / size), d]``.
        length: T.
        size: number of ranks.
        group: name of the process group.
    """
    first = part.movedim(DIMENSION, 0).contiguous()
    whole = collectives.all_gather(first, size, group).movedim(0, DIMENSION)
    return whole.narrow(DIMENSION, 0, length).contiguous()


def sum_and_shard(partial: Tensor, size: int, group: str) -> Tensor:
    """This rank's tokens of the sum over all ranks: a reduce-scatter where an all-reduce was.

    Args:
        partial: what is summed, ``[.., T, d]``.
        size: number of ranks.
        group: name of the process group.

    Returns:
        ``[.., ceil(T / size), d]``.
    """
    first = _padded(partial, size).movedim(DIMENSION, 0).contiguous()
    return collectives.reduce_scatter(first, size, group).movedim(0, DIMENSION).contiguous()


def _shard_length(whole: Tensor, size: int) -> int:
    return (whole.shape[DIMENSION] + size - 1) // size


def _padded(whole: Tensor, size: int) -> Tensor:
    missing = _shard_length(whole, size) * size - whole.shape[DIMENSION]
    return functional.pad(whole, (0, 0, 0, missing))
