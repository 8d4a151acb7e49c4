"""How a model is trained, as a report counts it: what is checkpointed, and over how many ranks it is sharded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from attnres_kernels.errors import AttnResError

Checkpoint = Literal["none", "layer", "branch"]


class ParallelError(AttnResError, ValueError):
    """A checkpointing or sharding that a report is asked for cannot be, or not of this model."""


@dataclass(frozen=True)
class Parallel:
    """The setting that a report counts. Raises ParallelError for values that cannot be.

    checkpoint: what is under ``torch.utils.checkpoint``: "none"; "layer", every layer of the model, reads included;
    "branch", every sublayer between the norm behind its read and its addition, so that reads and norms stay outside.
    fsdp: ranks of FSDP2, with ``fully_shard`` on every layer and on the model. tp: tensor-parallel ranks, which share
    heads and hidden features of every sublayer and hold the stream whole.
    """

    checkpoint: Checkpoint = "none"
    fsdp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        if self.checkpoint not in get_args(Checkpoint):
            raise ParallelError(f"checkpoint is {self.checkpoint!r}: give one of {', '.join(get_args(Checkpoint))}.")
        for name in ("fsdp", "tp"):
            ranks = getattr(self, name)
            if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
                raise ParallelError(f"{name} is {ranks!r}: give the number of ranks, 1 for none.")

    @property
    def is_plain(self) -> bool:
        """Whether nothing is checkpointed or sharded, as reports count where nothing else is asked for."""
        return self == Parallel()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"checkpoint": self.checkpoint, "fsdp": self.fsdp, "tp": self.tp}

    def line(self) -> str:
        """What is counted, in one line for people; '' where nothing is checkpointed or sharded."""
        parts = {
            "layer": ["every layer checkpointed"],
            "branch": ["the branch of every sublayer checkpointed"],
            "none": [],
        }[self.checkpoint]
        if self.fsdp > 1:
            parts.append(f"FSDP2 over {self.fsdp} ranks")
        if self.tp > 1:
            parts.append(f"tensor parallelism over {self.tp} ranks")
        return f"counted with {', '.join(parts)}" if parts else ""
