"""What a preset is: the names of a configuration and a model class of transformers, and the values that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnres_compile.models.transformers_source import find_class


@dataclass(frozen=True)
class Preset:
    """One named model.

    source: the published configuration, or the family whose shape a small one has, in one line; what is assumed is
    named there. config_class, model_class: names in transformers. values: differences from the defaults of
    config_class.
    rewrite: options of the rewrite that belong to the published model, such as the block size it was trained with;
    ``attnres report`` takes them where the user gives none. capture_seq: tokens per row to capture at, for models whose
    graph grows with the number of tokens; None for all others.
    """

    name: str
    source: str
    config_class: str
    model_class: str
    values: Mapping[str, Any] = field(default_factory=dict)
    rewrite: Mapping[str, Any] = field(default_factory=dict)
    capture_seq: int | None = None

    def build_config(self) -> Any:
        """The transformers configuration. Raises MissingExtraError."""
        return find_class(self.config_class)(**self.values)

    def build_model(self, config: Any) -> Any:
        """The transformers model of ``config`` with random weights. Raises MissingExtraError."""
        return find_class(self.model_class)(config)
