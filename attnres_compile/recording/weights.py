"""What a recording gives: the mean weights of every read, magnitudes and gradient norms of every write."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnres_compile.model.errors import RecordingError
from attnres_compile.recording import plot, table
from attnres_compile.recording.recorded import Recorded, RecordedRead, RecordedWrite, Sublayer

SCHEMA_VERSION = 1
CONTENT = "attnres depth weights"


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
        return plot.plot(self.result(), path)

    def __str__(self) -> str:
        return table.text(self.result())


@dataclass(frozen=True)
class DepthWeights(Recorded, Views):
    """What was recorded of a model, frozen."""

    def result(self) -> DepthWeights:
        return self

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
