"""Named models: published transformers configurations with random weights, and small ones of the same shape.

A preset is data (``preset.Preset``); they are listed by family in the files of this folder.
"""

from __future__ import annotations

from attnres_compile.models.presets import decoders, encoders, mixtures, small
from attnres_compile.models.presets.preset import Preset

__all__ = ["PRESETS", "Preset"]

PRESETS: dict[str, Preset] = {
    preset.name: preset for family in (decoders, mixtures, encoders, small) for preset in family.PRESETS
}
