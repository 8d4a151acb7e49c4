"""What a recording gives: the mean weights of every read, magnitudes and gradient norms of every write."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from attnres_compile.model.errors import RecordingError
from attnres_compile.recording import table

SCHEMA_VERSION = 1
CONTENT = "attnres depth weights"


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


class Views(ABC):
    """The ways to look at a recording that is running, closed or loaded."""

    @abstractmethod
    def result(self) -> DepthWeights:
        """All that was recorded up to now, frozen."""

    @property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """The mean weights of each of ``reads``, one per source."""
        return tuple(read.weights for read in self.result().reads)

    @property
    def entropy(self) -> tuple[float, ...]:
        """The mean entropy of each of ``reads``, in nats."""
        return tuple(read.entropy for read in self.result().reads)

    @property
    def output_magnitude(self) -> tuple[float, ...]:
        """The root mean square of the output of each of ``writes``."""
        return tuple(write.output_magnitude for write in self.result().writes)

    @property
    def gradient_norm(self) -> tuple[float | None, ...]:
        """The mean norm of the gradient of each of ``writes``."""
        return tuple(write.gradient_norm for write in self.result().writes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema_version``; ``DepthWeights.from_dict`` of it gives an equal recording."""
        return {"schema_version": SCHEMA_VERSION, "content": CONTENT, **dataclasses.asdict(self.result())}

    def save(self, path: str | Path) -> None:
        """Write it as JSON; ``DepthWeights.load`` and ``attnres plot`` read it."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line per number, under ``table.CSV_COLUMNS``; also written to ``path`` if one is given."""
        text = table.csv_text(self.result())
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw it: weights with the reads before attentions and before MLPs apart, magnitudes, gradient norms.

        Args:
            path: where to write the picture; its ending chooses the format (png, svg, pdf).

        Returns:
            The matplotlib Figure.

        Raises:
            RecordingError: matplotlib is not installed, or the ending is not one that it writes.
        """
        from attnres_compile.recording.plot import plot

        return plot(self.result(), path)

    def __str__(self) -> str:
        return table.text(self.result())


@dataclass(frozen=True)
class DepthWeights(Views):
    """What was recorded, frozen. model: class name; streams: names, in the order of the plan.

    reads: those with two sources or more, stream by stream in read order (one with a single source has weight one on
    it); writes: all, stream by stream in their order.
    """

    model: str
    streams: tuple[str, ...]
    reads: tuple[RecordedRead, ...]
    writes: tuple[RecordedWrite, ...]

    def result(self) -> DepthWeights:
        return self

    __str__ = Views.__str__

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DepthWeights:
        """The recording that ``to_dict`` was taken of. Raises RecordingError on data of another kind."""
        if not isinstance(data, Mapping) or data.get("content") != CONTENT:
            raise RecordingError("this is no recording of depth weights; give what w.save(path) wrote.")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise RecordingError(
                f"this recording has schema {data.get('schema_version')!r} and this version reads {SCHEMA_VERSION}; "
                "record it again."
            )
        try:
            reads = tuple(
                RecordedRead(**{**read, "before": Sublayer(read["before"]), "weights": tuple(read["weights"])})
                for read in data["reads"]
            )
            writes = tuple(
                RecordedWrite(**{**write, "sublayer": Sublayer(write["sublayer"])}) for write in data["writes"]
            )
            return cls(data["model"], tuple(data["streams"]), reads, writes)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"this recording is damaged ({error}); record it again.") from error

    @classmethod
    def load(cls, path: str | Path) -> DepthWeights:
        """Read what ``save`` wrote. Raises RecordingError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordingError(f"{path} cannot be read ({error}); give a file that w.save(path) wrote.") from error
        return cls.from_dict(data)
