"""The blocks that a rank keeps during one step, per micro-batch, and the gradients that later chunks hand back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from attnres_kernels.errors import AttnResError


class StoreError(AttnResError):
    """The store of a rank was used out of order: a fault of the pipeline, never of the user's model."""


@dataclass
class BlockStore:
    """Shared by all chunks of a rank. peak: most blocks that were kept at once, over all micro-batches.

    A block is put once, read by later chunks, and dropped after the last of them. Its gradients from those chunks are
    added up, and taken once, by the chunk that put it.
    """

    values: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    gradients: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    peak: int = 0

    def put(self, microbatch: int, block: int, value: Tensor) -> None:
        """Keep a block.

        Args:
            microbatch, block: numbers of both, from 0.
            value: of the block, kept without what leads to it.

        Raises:
            StoreError: it is kept already.
        """
        place = (microbatch, block)
        if place in self.values:
            raise StoreError(f"block {block} of micro-batch {microbatch} was kept twice; report this.")
        self.values[place] = value.detach()
        self.peak = max(self.peak, len(self.values))

    def leaf(self, microbatch: int, block: int, requires_grad: bool) -> Tensor:
        """A block as a fresh leaf on its memory.

        Args:
            microbatch, block: numbers of a block that was put.
            requires_grad: whether a backward pass will come.
        """
        return self.values[microbatch, block].detach().requires_grad_(requires_grad)

    def drop(self, microbatch: int, block: int) -> None:
        """Forget a block that no chunk will read any more. What autograd holds of it stays.

        Args:
            microbatch, block: numbers of a block that was put.
        """
        del self.values[microbatch, block]

    def add_gradient(self, microbatch: int, block: int, gradient: Tensor) -> None:
        """Add a part of the gradient of a block.

        Args:
            microbatch, block: numbers of both.
            gradient: from a later chunk, in the shape of the block.
        """
        place = (microbatch, block)
        known = self.gradients.get(place)
        # Out of place: what autograd returned may be memory of its own.
        self.gradients[place] = gradient if known is None else known + gradient

    def take_gradient(self, microbatch: int, block: int) -> Tensor | None:
        """Take the gradient of a block.

        Args:
            microbatch, block: numbers of both.

        Returns:
            The sum of what later chunks added; None if none of them did.
        """
        return self.gradients.pop((microbatch, block), None)

    def clear(self) -> None:
        """Forget what an interrupted step left behind."""
        self.values.clear()
        self.gradients.clear()

    def check_empty(self) -> None:
        """Raise StoreError if a whole step has left a block or a gradient behind."""
        if self.values or self.gradients:
            raise StoreError(
                f"after the step, blocks {sorted(self.values)} are still kept and gradients {sorted(self.gradients)} "
                "were not taken (as micro-batch, block); report this."
            )
