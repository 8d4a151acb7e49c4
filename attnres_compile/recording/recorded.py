"""What is recorded of a model, as frozen data: one entry a read, and one a write."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Sublayer(StrEnum):
    """What a sublayer does with the tokens. MIXER: one token's output depends on other tokens; CHANNEL: it does not.

    OUTPUT is for reads that no sublayer of their stream follows; UNKNOWN, where it was not found out.
    """

    MIXER = "attention"
    CHANNEL = "mlp"
    OUTPUT = "output"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RecordedRead:
    """One read, averaged over all tokens that were recorded.

    module, source: path of the reader and its ``file:line``; before: the sublayer that it feeds; state: writes that
    it sees; is_open: whether its last source is the open partial sum of its block; tokens: how many were recorded;
    weights: mean softmax weight per source (0 is the root, i is block i), which sum to one; entropy: mean, in nats, at
    most log of the number of sources; magnitude: root mean square of what the read gave.
    """

    stream: str
    module: str
    source: str
    before: Sublayer
    state: int
    block: int | None
    is_open: bool
    tokens: int
    weights: tuple[float, ...]
    entropy: float
    magnitude: float


@dataclass(frozen=True)
class RecordedWrite:
    """One sublayer's output ``v_i``.

    sublayer: what made it; index: i, from 1; output_magnitude: root mean square of ``v_i`` over tokens and features;
    block_magnitude: of the sum of its block up to and with ``v_i``; gradient_norm: 2-norm of the gradient of what
    ``backward`` was called on with respect to ``v_i`` as the stream takes it, a mean over backward passes; None where
    none was recorded; backwards: their number.
    """

    stream: str
    module: str
    source: str
    sublayer: Sublayer
    index: int
    block: int
    tokens: int
    output_magnitude: float
    block_magnitude: float
    gradient_norm: float | None
    backwards: int


@dataclass(frozen=True)
class Recorded:
    """All entries of a model.

    model: its class name; streams: names, in the order of the plan; reads: those with two sources or more, stream by
    stream in read order (one with a single source has weight one on it); writes: all, stream by stream in their order.
    """

    model: str
    streams: tuple[str, ...]
    reads: tuple[RecordedRead, ...]
    writes: tuple[RecordedWrite, ...]
