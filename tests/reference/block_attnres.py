"""The depth attention and its block bookkeeping, from the equations of arXiv 2603.15031.

Nothing here is shared with the packages under test, and nothing is optimised: sources are stacked, every read
looks at all of them again, and the arithmetic stays in the dtype of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

KEY_NORM_EPS = 1e-6

Scale = Literal["mean", "sum"]
ReadParameters = tuple[Tensor, Tensor]


def mix(
    sources: Sequence[Tensor],
    query: Tensor,
    key_weight: Tensor,
    eps: float = KEY_NORM_EPS,
    scale: Scale = "mean",
) -> Tensor:
    """Depth attention over sources (equations 2 to 4), per token.

    sources: n tensors [B, T, d], each key and value at once; query, key_weight: [d]. Gives [B, T, d].
    """
    values = torch.stack(list(sources))  # [n, B, T, d]
    inverse_rms = torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + eps)  # [n, B, T, 1]
    keys = values * inverse_rms * key_weight  # [n, B, T, d]
    logits = torch.einsum("nbtd,d->nbt", keys, query)
    weights = torch.softmax(logits, dim=0)  # [n, B, T]
    mixed = torch.einsum("nbt,nbtd->btd", weights, values)
    return mixed * len(sources) if scale == "sum" else mixed


class Residuals(Protocol):
    """What a hand-written model needs of its residual path."""

    def read(self) -> Tensor:
        """The input of the next sublayer, [B, T, d]."""

    def write(self, output: Tensor) -> None:
        """Take a sublayer's output, [B, T, d]."""


class PlainResiduals:
    """The standard residual stream: every read is the sum of all that was written."""

    def __init__(self, root: Tensor) -> None:
        self.state = root

    def read(self) -> Tensor:
        return self.state

    def write(self, output: Tensor) -> None:
        self.state = self.state + output


class BlockResiduals:
    """Block AttnRes (equations 5 and 6): the root, the completed blocks and the open block's partial sum.

    root: the embedding output, [B, T, d]. queries, key_weights: [d] each, one per read with two sources or
    more, in read order; the read of the root alone takes none.
    """

    def __init__(
        self,
        root: Tensor,
        block_size: int,
        queries: Sequence[Tensor],
        key_weights: Sequence[Tensor],
        eps: float = KEY_NORM_EPS,
        scale: Scale = "mean",
    ) -> None:
        self.root = root
        self.block_size = block_size
        self.parameters = list(zip(queries, key_weights, strict=True))
        self.eps = eps
        self.scale = scale
        self.blocks: list[Tensor] = []
        self.partial: list[Tensor] = []
        self.reads_done = 0

    @property
    def sources(self) -> list[Tensor]:
        open_block = [sum(self.partial[1:], start=self.partial[0])] if self.partial else []
        return [self.root, *self.blocks, *open_block]

    def read(self) -> Tensor:
        sources = self.sources
        if len(sources) == 1:
            return self.root
        query, key_weight = self.parameters[self.reads_done]
        self.reads_done += 1
        return mix(sources, query, key_weight, self.eps, self.scale)

    def write(self, output: Tensor) -> None:
        self.partial.append(output)
        if len(self.partial) == self.block_size:
            self.blocks.append(self.sources[-1])
            self.partial = []

    def finish(self) -> None:
        """Check that every parameter was read: one too many would mean the sublayers were miscounted."""
        assert self.reads_done == len(self.parameters), (self.reads_done, len(self.parameters))


def make_residuals(
    root: Tensor,
    reads: Sequence[ReadParameters] | None,
    block_size: int | None,
    eps: float,
    scale: Scale,
) -> PlainResiduals | BlockResiduals:
    """Block residuals from (query, key_weight) pairs in read order; the plain stream when reads is None."""
    if reads is None:
        return PlainResiduals(root)
    assert block_size is not None, "reads need a block_size"
    queries, key_weights = [query for query, _ in reads], [weight for _, weight in reads]
    return BlockResiduals(root, block_size, queries, key_weights, eps, scale)
