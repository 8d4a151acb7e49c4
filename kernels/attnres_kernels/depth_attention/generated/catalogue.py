"""Every kernel that a block of a stream needs, with its tile: what is compiled offline, and what can be listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attnres_kernels.depth_attention.generated import tiling
from attnres_kernels.depth_attention.generated.logits import logits_text
from attnres_kernels.depth_attention.generated.phase_1 import phase_1_text
from attnres_kernels.depth_attention.generated.phase_1_backward import gradients_text, projections_text
from attnres_kernels.depth_attention.generated.phase_2 import phase_2_text
from attnres_kernels.depth_attention.generated.phase_2_backward import phase_2_backward_text
from attnres_kernels.depth_attention.generated.specs import (
    Phase1BackwardSpec,
    Phase1Spec,
    Phase2BackwardSpec,
    Phase2Spec,
    sources_per_backward,
)


@dataclass(frozen=True)
class Entry:
    """One kernel. constants: its compile-time arguments but the tile."""

    kind: str
    text: str
    tile: tiling.Tiling
    constants: dict[str, float]


def kernels_of_block(sources: int, reads: int, width: int, later_reads: int) -> Iterator[Entry]:
    """The kernels for one block: ``sources`` completed blocks of ``width``, its reads, and all ``later_reads``.

    Phase 2 with everything fused that can be: the add before, and a norm with weight and bias behind.
    """
    at_once = min(sources, sources_per_backward(reads))
    every_read, every_source = tuple(range(reads)), tuple(range(at_once))
    eps = {"eps": 1e-6}
    backward = Phase1BackwardSpec(at_once, reads, every_read, every_source)
    along, whole = tiling.along_width(width), tiling.whole_rows(width)
    block_r = {"BLOCK_R": max(16, tiling.power_of_two(later_reads))}
    yield Entry("logits", logits_text(True), tiling.matrix_product(later_reads), {**eps, **block_r})
    yield Entry("phase 1", phase_1_text(Phase1Spec(sources, reads)), along, {})
    yield Entry("phase 1 backward, sums", projections_text(backward), along, eps)
    yield Entry("phase 1 backward, gradients", gradients_text(backward), along, {})
    for norm in ("rms", "layer"):
        phase_2 = Phase2Spec(True, norm, True, norm == "layer")
        constants = {"factor": 1.0, "eps": 1e-6, "norm_eps": 1e-5}
        yield Entry(f"phase 2, {norm} norm", phase_2_text(phase_2), whole, constants)
        text = phase_2_backward_text(Phase2BackwardSpec(phase_2, True, True, True))
        yield Entry(f"phase 2 backward, {norm} norm", text, whole, {"factor": 1.0})
