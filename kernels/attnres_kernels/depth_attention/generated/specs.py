"""What a kernel is generated for, as frozen specs.

Widths, row strides and numbers of tokens are arguments of a kernel, not part of its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MOST_SOURCES = 12
"""Sources that one launch of phase 1 holds in registers; more are read by further launches that go on from it."""

MOST_PAIRS = 24
"""Pairs of a source and a read whose products the backward of phase 1 holds per token."""

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True)
class Phase1Spec:
    """Phase 1: the reads of a block over its completed blocks.

    sources: completed blocks; reads: of the block; continues: goes on from outputs over earlier sources.
    """

    sources: int
    reads: int
    continues: bool = False


def sources_per_backward(reads: int) -> int:
    """Sources that one launch of phase 1's backward works on."""
    return max(1, min(MOST_SOURCES, MOST_PAIRS // reads))


@dataclass(frozen=True)
class Phase1BackwardSpec:
    """The backward of phase 1, in two kernels.

    grads: the reads whose outputs have a gradient; carried: the sources that come with one from later blocks.
    """

    sources: int
    reads: int
    grads: tuple[int, ...]
    carried: tuple[int, ...]


@dataclass(frozen=True)
class Phase2Spec:
    """Phase 2 of one read.

    adds: the branch output is added to the partial sum first, and the new partial sum is an output;
    norm: the norm behind, if it is fused; has_weight, has_bias: of that norm; returns_value: the depth-attended value
    is an output, which it must be where no norm is fused.
    """

    adds: bool = False
    norm: NormKind | None = None
    has_weight: bool = False
    has_bias: bool = False
    returns_value: bool = True

    def __post_init__(self) -> None:
        if self.norm is None and not self.returns_value:
            raise ValueError("without a norm behind, the depth-attended value is the only output: return it")
        if self.norm is None and (self.has_weight or self.has_bias):
            raise ValueError("a weight and a bias belong to a norm: name its kind")


@dataclass(frozen=True)
class Phase2BackwardSpec:
    """The backward of phase 2.

    forward: what it is the backward of; has_value_grad, has_normed_grad, has_partial_grad: which outputs have a
    gradient.
    """

    forward: Phase2Spec
    has_value_grad: bool
    has_normed_grad: bool
    has_partial_grad: bool
