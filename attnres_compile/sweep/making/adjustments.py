"""What the shrinker and the guessed inputs do not reach: one entry a model type, in ``adjustments.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Adjustment:
    """Of one model type."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the small configuration; ``"(default)"`` leaves a field out."""
    inputs: Mapping[str, Any] | None = None
    """All keyword arguments of the call, as ``inputs.made`` reads them, in place of guessed ones."""
    more_inputs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments beside the guessed ones."""
    model_class: str | None = None
    """Name of the class in place of the one that ``AutoModel`` takes."""
    divisor: int | None = None
    """Of all widths, where only one will do."""
    skip: str = ""
    """Why the type has no model that runs by itself."""
    why: str = ""


def _read() -> dict[str, Adjustment]:
    data = json.loads(resources.files(__package__).joinpath("adjustments.json").read_text(encoding="utf-8"))
    return {name: Adjustment(**entry) for name, entry in data.items()}


ADJUSTMENTS: dict[str, Adjustment] = _read()
