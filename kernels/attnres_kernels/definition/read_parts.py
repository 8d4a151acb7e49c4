"""The values that describe one read of the residual stream wherever it is handed on: in graphs, operators and launches.

They are tuples with names, so that a graph can hold them as arguments of its nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class ReadParts(NamedTuple):
    """What a read attends to.

    inter, log_sum: phase 1's output `[*, d]` and log-sum-exp `[*]`, or None; sources, logits: completed blocks `[*, d]`
    beside these and their logits, of a whole stream or `[rows]` of this read; partial, key: the open partial sum
    `[*, d]` and the effective key `[d]` for its logit, or None.
    """

    inter: Tensor | None = None
    log_sum: Tensor | None = None
    sources: Sequence[Tensor] = ()
    logits: Sequence[Tensor] = ()
    partial: Tensor | None = None
    key: Tensor | None = None

    def values(self) -> list[Tensor]:
        """The parts that there are, each `[*, d]`; the first one has the dtype of the stream."""
        return [x for x in (self.partial, *self.sources, self.inter) if x is not None]

    def takes_in(self) -> list[str]:
        """What there is beside blocks, in words."""
        named = {"phase 1": self.inter, "partial sum": self.partial}
        return [name for name, value in named.items() if value is not None]


class OwnLogitsParts(NamedTuple):
    """What a read that makes its own logits attends to.

    sources: completed blocks `[*, d]`; partial: the open partial sum `[*, d]`, or None; query, key_weight: `[d]`, whose
    product is the effective key.
    """

    sources: Sequence[Tensor]
    partial: Tensor | None
    query: Tensor
    key_weight: Tensor

    def values(self) -> list[Tensor]:
        """All sources, the partial sum last."""
        return [*self.sources, *([] if self.partial is None else [self.partial])]


class ReadForm(NamedTuple):
    """Which read it is, and how it is scaled.

    number, total: its number among the reads that the logits' columns are of; factor: of the result, the number of all
    sources for `scale="sum"`, else 1; eps: of the key norm.
    """

    number: int
    total: int
    factor: float
    eps: float


class Neighbours(NamedTuple):
    """What a read's kernel computes beside the read.

    branch: `[*, d]`, added to the open partial sum first, or None; norm: the norm behind, "rms", "layer" or None;
    norm_eps, norm_weight, norm_bias: its eps, weight `[d]` and bias `[d]`; returns_value: whether anything but that
    norm needs the value, which is returned without a norm in any case.
    """

    branch: Tensor | None = None
    norm: str | None = None
    norm_eps: float = 0.0
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    returns_value: bool = True

    def results(self) -> tuple[bool, bool, bool]:
        """Whether the value, the normed value and the new partial sum are made."""
        return self.norm is None or self.returns_value, self.norm is not None, self.branch is not None

    def takes_in(self) -> list[str]:
        """What is fused, in words."""
        return ["add"] * (self.branch is not None) + [f"{self.norm} norm"] * (self.norm is not None)


ALONE = Neighbours()
"""A read by itself."""


class OutputGradients(NamedTuple):
    """Gradients `[*, d]` of the value, of the normed value, and of the partial sum from its later readers, or None."""

    value_grad: Tensor | None = None
    normed_grad: Tensor | None = None
    partial_grad: Tensor | None = None
