"""The part of depth_weights.md: a recording of a training run, as it prints."""

from pathlib import Path

from attnres_compile import DepthWeights
from parts import part
from parts.layout import fenced

RECORDING = Path(__file__).resolve().parents[1] / "pictures" / "depth_weights.json"


@part
def recording() -> str:
    return fenced(str(DepthWeights.load(RECORDING)))
