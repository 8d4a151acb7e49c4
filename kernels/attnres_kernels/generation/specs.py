"""What a kernel is generated for, as frozen specs.

Widths, row strides and numbers of tokens are arguments of a kernel, not part of its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MOST_SOURCES = 12
"""Sources that one launch holds in registers; more are read by further launches that go on from it."""

MOST_IN_PLACE = 12
MOST_IN_PLACE_WIDE = 4
"""Completed blocks that a read attends to in place, in rows of any width and in wide ones; phase 1 sums up others."""

MOST_PARTS_WITH_BIAS = 7
"""Blocks and phase 1's output in a read whose backward has registers for sums for a bias."""

MOST_READS = 8
"""Reads whose gradients one launch of the sources' backward holds in registers."""

MOST_TILES_OF_KEYS = 4
"""Tiles of all reads of which registers hold the sums for the keys, in one launch of the sources' backward."""

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True)
class LogitsSpec:
    """Logits of one completed block for all its later reads.

    splits_keys: for bf16 sources, which are exact in bf16: each fp32 key is the sum of two bf16 parts, so that two
    products on tensor cores are as good as one in fp32; adds: the last write is added to the open partial sum first,
    and the completed block is an output.
    """

    splits_keys: bool
    adds: bool = False


@dataclass(frozen=True)
class Phase1Spec:
    """Phase 1: the reads of a group over the blocks that were complete before it.

    sources: completed blocks; reads: of the group; continues: goes on from outputs over earlier sources.
    """

    sources: int
    reads: int
    continues: bool = False


@dataclass(frozen=True)
class ReadSpec:
    """One read, which is phase 2 where ``has_inter``, and a direct read where not.

    sources: completed blocks that are read in place, with known logits; has_inter: phase 1's output and log-sum-exp
    over further blocks; has_partial: there is an open partial sum; adds: the branch output is added to it first, and
    the new partial sum is an output; norm: the norm behind, if it is fused; has_weight, has_bias: of that norm;
    returns_value: the depth-attended value is an output, which it must be where no norm is fused.
    """

    sources: int = 0
    has_inter: bool = True
    has_partial: bool = True
    adds: bool = False
    norm: NormKind | None = None
    has_weight: bool = False
    has_bias: bool = False
    returns_value: bool = True

    def __post_init__(self) -> None:
        if self.sources + self.has_inter + self.has_partial == 0:
            raise ValueError("a read has a source: completed blocks, phase 1's output or an open partial sum")
        if self.adds and not self.has_partial:
            raise ValueError("a branch is added to an open partial sum: there is none")
        if self.norm is None and not self.returns_value:
            raise ValueError("without a norm behind, the depth-attended value is the only output: return it")
        if self.norm is None and (self.has_weight or self.has_bias):
            raise ValueError("a weight and a bias belong to a norm: name its kind")


@dataclass(frozen=True)
class ReadBackwardSpec:
    """The backward of a read.

    forward: what it is the backward of; has_value_grad, has_normed_grad, has_partial_grad: which outputs have a
    gradient; is_wide: rows are too wide for registers to hold a third sum over tokens, so that the gradient of the
    norm's bias, a sum over what is given, is not made here.
    """

    forward: ReadSpec
    has_value_grad: bool
    has_normed_grad: bool
    has_partial_grad: bool
    is_wide: bool = False

    @property
    def sums_bias(self) -> bool:
        """Whether the gradient of the norm's bias is made here, for which many parts leave no registers, either."""
        forward = self.forward
        is_short = self.is_wide or forward.sources + forward.has_inter > MOST_PARTS_WITH_BIAS
        return self.has_normed_grad and forward.has_bias and not is_short

    @property
    def tiles(self) -> int:
        """Tensors that it reads a row of at a time: the parts and the gradients that are given."""
        forward = self.forward
        given = self.has_value_grad + (self.has_normed_grad and forward.norm is not None) + self.has_partial_grad
        return forward.sources + forward.has_inter + forward.has_partial + given

    @property
    def copied(self) -> int:
        """Rows that its pipeline copies at a time: one of each tensor, and of a wide partial sum a second one."""
        return self.tiles + (self.is_wide and self.forward.has_partial)


@dataclass(frozen=True)
class SourcesBackwardSpec:
    """The backward of several reads into completed blocks, in one kernel or two.

    reads: the reads, of those that the keys are of, whose values have a gradient; carried: the sources that come with
    a gradient from later reads; tiles: of a row, if registers hold sums for the keys beside them, and 0 if a kernel
    of its own makes these.
    """

    sources: int
    reads: tuple[int, ...]
    carried: tuple[int, ...]
    tiles: int = 0

    @property
    def sums_keys(self) -> bool:
        """Whether the kernel of the gradients sums the gradients of the keys, too."""
        return self.tiles > 0


@dataclass(frozen=True)
class OwnLogitsReadSpec:
    """One read that makes the logits of all its sources itself.

    read: its sources and neighbours, without phase 1; at_once: sources that it holds in registers at once.
    """

    read: ReadSpec
    at_once: int

    def __post_init__(self) -> None:
        if self.read.has_inter:
            raise ValueError("a read with own logits attends to all its sources in place: leave phase 1 out")
        if self.at_once < 1:
            raise ValueError("a read holds a source at a time: at_once is at least 1")


@dataclass(frozen=True)
class OwnLogitsReadBackwardSpec:
    """The backward of a read with own logits: the gradients of all its sources, too.

    forward: what it is the backward of; has_value_grad, has_normed_grad, has_partial_grad: which outputs have a
    gradient; at_once: sources that registers hold at once, and if these are not all, each is read again from the cache
    where it is needed; holds_sums: registers hold sums over tokens, else the program's own rows in memory do.
    """

    forward: ReadSpec
    has_value_grad: bool
    has_normed_grad: bool
    has_partial_grad: bool
    at_once: int
    holds_sums: bool

    @property
    def holds_sources(self) -> bool:
        return self.at_once >= self.forward.sources + self.forward.has_partial

    @property
    def norm(self) -> NormKind | None:
        """The norm, if a gradient comes through it."""
        return self.forward.norm if self.has_normed_grad else None


KernelSpec = (
    LogitsSpec
    | Phase1Spec
    | ReadSpec
    | ReadBackwardSpec
    | SourcesBackwardSpec
    | OwnLogitsReadSpec
    | OwnLogitsReadBackwardSpec
)


def launches_of(spec: KernelSpec) -> int:
    """Kernels that are launched for a spec: two where the gradients of the keys have one of their own."""
    return 2 if isinstance(spec, SourcesBackwardSpec) and not spec.sums_keys else 1
