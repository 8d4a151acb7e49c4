"""How a read with own logits is cut, by width and number of sources: a static table, as in ``tiling``."""

from __future__ import annotations

import torch

from attnres_kernels.generation.specs import NormKind, OwnLogitsReadBackwardSpec, OwnLogitsReadSpec, ReadSpec
from attnres_kernels.launch import rows, tiling
from attnres_kernels.launch.tiling import Tiling

HELD_FORWARD = 80
HELD_OF_GROUP = 48
"""Elements of sources that a thread holds at once in a forward pass: of all sources, and of a group of them."""

MOST_HELD = 5
ELEMENTS_HELD = 16
"""Sources that a backward pass holds until their last use, and elements of a row that a thread has there at most."""

AT_ONCE = 3
"""Sources that it loads at once where it does not hold them."""

MOST_SOURCES = 32
MOST_SOURCES_WIDE = 10
MOST_SOURCES_WIDE_LAYER = 8
"""Sources of one read, the open partial sum among them: in rows of any width, in wide ones, and in these with a
LayerNorm behind. More make a kernel long to compile, and in wide rows the backward spills registers.
"""

BACKWARD_WARPS = 8
"""Most warps of a program of a backward pass: fewer threads have more registers each, and add up in fewer steps."""

LOADED_BITS = 128
"""Bits that a thread loads at a time."""


def most_sources(width: int, norm: NormKind | None) -> int:
    """The most sources, the open partial sum among them, of which a read makes the logits itself.

    Args:
        width: of the stream.
        norm: behind the read.
    """
    if not tiling.is_wide(width):
        return MOST_SOURCES
    return MOST_SOURCES_WIDE_LAYER if norm == "layer" else MOST_SOURCES_WIDE


def forward_tile(width: int) -> Tiling:
    return tiling.whole_rows(width)


def backward_tile(width: int) -> Tiling:
    tile = tiling.whole_rows(width)
    return Tiling(tile.rows, tile.columns, min(tile.warps, BACKWARD_WARPS))


def lanes(tile: Tiling, dtype: torch.dtype) -> dict[str, int]:
    """How a row is summed: first the columns of a thread, ``FOLD`` for each load, then over ``LANES`` threads.

    Args:
        tile: of a program.
        dtype: of the sources.
    """
    fold = min(tile.columns, LOADED_BITS // (8 * dtype.itemsize))
    return {"LANES": min(tile.columns // fold, 32 * tile.warps), "FOLD": fold}


def forward_spec(read: ReadSpec, width: int) -> OwnLogitsReadSpec:
    """How many sources a read holds at once.

    Args:
        read: its sources and neighbours.
        width: of the stream.
    """
    sources, elements = read.sources + read.has_partial, _elements(forward_tile(width))
    is_held = sources * elements <= HELD_FORWARD
    return OwnLogitsReadSpec(read, sources if is_held else _evenly(sources, max(1, HELD_OF_GROUP // elements)))


def backward_spec(
    forward: ReadSpec, width: int, has_value_grad: bool, has_normed_grad: bool, has_partial_grad: bool
) -> OwnLogitsReadBackwardSpec:
    """How many sources the backward of a read holds at once, and where its sums over tokens are.

    Args:
        forward: what it is the backward of.
        width: of the stream.
        has_value_grad, has_normed_grad, has_partial_grad: which outputs have a gradient.
    """
    sources, elements = forward.sources + forward.has_partial, _elements(backward_tile(width))
    is_held = sources <= MOST_HELD and elements <= ELEMENTS_HELD
    at_once = sources if is_held else _evenly(sources, AT_ONCE)
    has_norm = forward.norm is not None and has_normed_grad
    holds_sums = is_held or (elements < ELEMENTS_HELD and not has_norm)
    return OwnLogitsReadBackwardSpec(forward, has_value_grad, has_normed_grad, has_partial_grad, at_once, holds_sums)


def _elements(tile: Tiling) -> int:
    """Elements of a row that one thread holds."""
    return max(1, tile.columns // (32 * tile.warps))


def _evenly(sources: int, most: int) -> int:
    """Sources of each group, with as few groups as can be."""
    groups = -(-sources // most)
    return -(-sources // groups)


def shares(like: torch.Tensor) -> tuple[int, int]:
    """How many programs sum over the tokens of ``like`` ``[rows, d]``, and the tokens of each; as ``rows.shares``,
    with more programs where they are small.
    """
    programs = tiling.programs(like.device)
    if tiling.is_gpu(like.device):
        programs *= max(1, BACKWARD_WARPS // backward_tile(like.shape[1]).warps)
    return programs, rows.cdiv(like.shape[0], programs)
