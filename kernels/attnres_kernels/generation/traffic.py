"""What a kernel reads and writes per token, counted from its spec, in units of the width ``d``.

Scalars per token (logits, statistics) and vectors (keys, weights of norms) are left out: they are ``d`` times fewer, or
read once. Bytes are elements times the size of the sources' dtype, in which all of these tensors are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

from attnres_kernels.generation.specs import (
    KernelSpec,
    LogitsSpec,
    OwnLogitsReadBackwardSpec,
    OwnLogitsReadSpec,
    Phase1Spec,
    ReadBackwardSpec,
    ReadSpec,
    SourcesBackwardSpec,
)


@dataclass(frozen=True)
class Traffic:
    """Tensors ``[rows, d]`` that are read from memory and written to it."""

    reads: int
    writes: int

    @property
    def total(self) -> int:
        return self.reads + self.writes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.reads + other.reads, self.writes + other.writes)


@singledispatch
def traffic_of(spec: KernelSpec) -> Traffic:
    """What the kernels of a spec move."""
    raise TypeError(f"{type(spec).__name__} is no spec of a kernel: count what it moves in generation/traffic.py.")


@traffic_of.register
def _(spec: LogitsSpec) -> Traffic:
    """The block; or the two parts of it, and the block written."""
    return Traffic(2, 1) if spec.adds else Traffic(1, 0)


@traffic_of.register
def _(spec: Phase1Spec) -> Traffic:
    """Every source once, and an output per read, which is read first where a launch goes on from it."""
    return Traffic(spec.sources + (spec.reads if spec.continues else 0), spec.reads)


@traffic_of.register
def _(spec: ReadSpec) -> Traffic:
    """Its parts and the branch; the value, the normed value and the new partial sum, those that there are."""
    reads = spec.sources + spec.has_inter + spec.has_partial + spec.adds
    return Traffic(reads, spec.returns_value + (spec.norm is not None) + spec.adds)


@traffic_of.register
def _(spec: ReadBackwardSpec) -> Traffic:
    """Its parts and the gradients given; the gradients of the weighted sum and of the partial sum.

    One of the gradients is read again where that of the bias is apart, a sum over it.
    """
    again = spec.has_normed_grad and spec.forward.has_bias and not spec.sums_bias
    return Traffic(spec.tiles + again, 1 + spec.forward.has_partial)


@traffic_of.register
def _(spec: SourcesBackwardSpec) -> Traffic:
    """Sources and gradients, those of reads and those carried; sources once more where a kernel of its own sums keys.

    A token's rows are read twice, the second time from the cache.
    """
    again = 0 if spec.sums_keys else spec.sources
    return Traffic(spec.sources + len(spec.reads) + len(spec.carried) + again, spec.sources)


@traffic_of.register
def _(spec: OwnLogitsReadSpec) -> Traffic:
    """The sources are in registers when logits are made of them, so this is that of a direct read with known logits."""
    return traffic_of(spec.read)


@traffic_of.register
def _(spec: OwnLogitsReadBackwardSpec) -> Traffic:
    """Its sources and the gradients given; the gradients of the sources.

    What is read more than once comes from the cache, as do sums over tokens that registers do not hold.
    """
    sources = spec.forward.sources + spec.forward.has_partial
    given = spec.has_value_grad + (spec.norm is not None) + spec.has_partial_grad
    return Traffic(sources + given, sources)
