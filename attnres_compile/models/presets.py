"""Named models: published transformers configurations with random weights, and small ones of the same architectures.

They are data, in ``presets.json`` beside this file. A preset that is *like* another one has its classes and values
where it names no own; *why* is for readers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from attnres_compile.models.transformers_source import find_class


@dataclass(frozen=True)
class Preset:
    """One named model: the names of a configuration and a model class of transformers, and the values that differ."""

    name: str
    source: str
    """The published configuration, or the family whose shape a small one has, in one line, with what is assumed."""
    config_class: str
    model_class: str
    values: Mapping[str, Any] = field(default_factory=dict)
    """Differences from the defaults of the configuration's class."""
    rewrite: Mapping[str, Any] = field(default_factory=dict)
    """Options that the published model was trained with; ``attnres report`` takes them where the user gives none."""
    capture_seq: int | None = None
    """Tokens per row to capture at, for models whose graph grows with the number of tokens."""
    is_small: bool = False
    """Nothing was published with these values: to try things out, and for tests."""

    def build_config(self) -> Any:
        """The transformers configuration. Raises MissingExtraError."""
        return find_class(self.config_class)(**self.values)

    def build_model(self, config: Any) -> Any:
        """The transformers model of ``config`` with random weights. Raises MissingExtraError."""
        return find_class(self.model_class)(config)


def _read() -> dict[str, Preset]:
    data = json.loads(resources.files(__package__).joinpath("presets.json").read_text(encoding="utf-8"))
    for entry in data.values():
        like = data.get(entry.pop("like", None), {})
        classes = {name: like.get(name) for name in ("config_class", "model_class")}
        values = {**like.get("values", {}), **entry.get("values", {})}
        entry |= {**classes, **entry, "values": values}
        entry.pop("why", None)
    return {name: Preset(name, **entry) for name, entry in data.items()}


PRESETS: dict[str, Preset] = _read()
