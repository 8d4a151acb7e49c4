"""Which rank runs which chunk of a pipeline: P ranks with V virtual stages each, C = P V chunks in all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from attnres_kernels.errors import AttnResError


class StageError(AttnResError, ValueError):
    """A model cannot be cut into pipeline stages as asked."""


class StageOrder(StrEnum):
    """LOOP: every pass over the ranks begins at rank 0. V: every other pass runs backwards, from the last rank."""

    LOOP = "loop"
    V = "v"


@dataclass(frozen=True)
class StageLayout:
    """P ranks with V = ``virtual`` chunks each. Raises StageError for values out of range."""

    ranks: int
    virtual: int = 1
    order: StageOrder = StageOrder.LOOP

    def __post_init__(self) -> None:
        for name in ("ranks", "virtual"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise StageError(f"{name}={value!r} is not an integer >= 1; give one.")
        if self.order not in tuple(StageOrder):
            raise StageError(f"order={self.order!r} is unknown; give 'loop' or 'v'.")
        object.__setattr__(self, "order", StageOrder(self.order))

    @property
    def chunks(self) -> int:
        return self.ranks * self.virtual

    def rank_of(self, chunk: int) -> int:
        """The rank that runs a chunk, both from 0."""
        turn, place = divmod(chunk, self.ranks)
        runs_back = self.order is StageOrder.V and turn % 2 == 1
        return self.ranks - 1 - place if runs_back else place

    def chunks_of(self, rank: int) -> tuple[int, ...]:
        """The chunks of a rank, in the order of a forward pass."""
        return tuple(chunk for chunk in range(self.chunks) if self.rank_of(chunk) == rank)

    def is_local(self, receiver: int) -> bool:
        """Whether chunk ``receiver`` gets its input from its own rank, so that nothing is sent."""
        return receiver > 0 and self.rank_of(receiver - 1) == self.rank_of(receiver)
