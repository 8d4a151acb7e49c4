"""What a kernel reads and writes per token, counted from its spec, in units of the width ``d``.

Scalars per token (logits, statistics) and vectors (keys, weights of norms) are left out: they are ``d`` times fewer, or
read once. Bytes are elements times the size of the sources' dtype, in which all of these tensors are.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnres_kernels.generation.specs import (
    LogitsSpec,
    OwnReadBackwardSpec,
    OwnReadSpec,
    Phase1Spec,
    ReadBackwardSpec,
    ReadSpec,
    SourcesBackwardSpec,
)


@dataclass(frozen=True)
class Moved:
    """Tensors ``[rows, d]`` that are read from memory and written to it."""

    reads: int
    writes: int

    @property
    def total(self) -> int:
        return self.reads + self.writes

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.reads + other.reads, self.writes + other.writes)


def of_logits(spec: LogitsSpec) -> Moved:
    """The block; or the two parts of it, and the block written."""
    return Moved(2, 1) if spec.adds else Moved(1, 0)


def of_phase_1(spec: Phase1Spec) -> Moved:
    """Every source once, and an output per read, which is read first where a launch goes on from it."""
    return Moved(spec.sources + (spec.reads if spec.continues else 0), spec.reads)


def of_read(spec: ReadSpec) -> Moved:
    """Its parts and the branch; the value, the normed value and the new partial sum, those that there are."""
    reads = spec.sources + spec.has_inter + spec.has_partial + spec.adds
    return Moved(reads, spec.returns_value + (spec.norm is not None) + spec.adds)


def of_read_backward(spec: ReadBackwardSpec) -> Moved:
    """Its parts and the gradients given; the gradients of the weighted sum and of the partial sum.

    One of the gradients is read again where that of the bias is apart, a sum over it.
    """
    again = spec.has_normed_grad and spec.forward.has_bias and not spec.sums_bias
    return Moved(spec.tiles + again, 1 + spec.forward.has_partial)


def of_sources_backward(spec: SourcesBackwardSpec) -> Moved:
    """Sources and gradients, those of reads and those carried; sources once more where a kernel of its own sums keys.

    A token's rows are read twice, the second time from the cache.
    """
    sources = spec.sources
    keys = Moved(0 if spec.sums_keys else sources, 0)
    return Moved(sources + len(spec.reads) + len(spec.carried), sources) + keys


def of_own_read(spec: OwnReadSpec) -> Moved:
    """As a direct read with known logits: what these are made of is in registers."""
    return of_read(spec.read)


def of_own_read_backward(spec: OwnReadBackwardSpec) -> Moved:
    """Its sources and the gradients given; the gradients of the sources.

    What is read more than once comes from the cache, as do sums over tokens that registers do not hold.
    """
    sources = spec.forward.sources + spec.forward.has_partial
    given = spec.has_value_grad + (spec.norm is not None) + spec.has_partial_grad
    return Moved(sources + given, sources)
