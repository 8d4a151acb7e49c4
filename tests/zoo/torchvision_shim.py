"""Lets timm and transformers be imported beside a torchvision whose compiled operators do not load.

Importing torchvision looks up two operator names, and fails where its own library does not match the
installed torch. The models used here never call those operators, so declaring the names is enough.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# A library's definitions live as long as the object.
_library: torch.library.Library | None = None


def ensure_torchvision_imports() -> None:
    """Import torchvision where it is installed, declaring its missing operators only if that fails."""
    global _library
    # The Makefile keeps timm and torchvision in a folder of their own, out of the way of transformers.
    aside = str(Path(sys.prefix) / "vision")
    if importlib.util.find_spec("timm") is None and aside not in sys.path:
        sys.path.append(aside)
    # Without torchvision, or without Pillow under it, transformers does without both and timm says so itself.
    with contextlib.suppress(ImportError):
        try:
            import torchvision
        except RuntimeError as error:
            if _library is not None or "torchvision::" not in str(error):
                raise
            _library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                _library.define(name + _SCHEMA)
            import torchvision  # noqa: F401
