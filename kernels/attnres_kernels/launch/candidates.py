"""Choices of a launch by kind of kernel: the static one of the tables of tiles first, then others to time.

All of them compute the same values. Rows are shared out among as many programs whatever is chosen, those of the static
choice, so that sums over tokens have one order; what differs is in which order the threads of a program sum over a row.

Others are half and twice the warps, half and twice the columns where a row is cut, and other numbers of stages. No
choice loads less than 128 bits at a time in bf16, and none spills registers on sm_90 with up to 9 completed blocks;
so kernels whose sums fill the registers keep the static choice. A test compiles the choices of some shapes
(``tests/kernels/launch/test_candidates.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from attnres_kernels.generation.specs import Phase1Spec, ReadBackwardSpec, SourcesBackwardSpec
from attnres_kernels.launch import own_logits_tiling, tiling
from attnres_kernels.launch.tiling import Tiling
from attnres_kernels.launch.tuning import Choice

Choices = tuple[Choice, ...]

MOST_WARPS = 32
"""Warps of a program, at most: 1024 threads."""

LOADED = 8
"""Elements that a thread loads at a time, 128 bits of bf16."""

WIDEST_TUNED = 8192
"""Columns of whole rows above which registers have no room for anything but the static choice, if even for that."""

MOST_COPIED_BY_HALF = 8
"""Rows that a pipeline copies at a time up to which half the warps have registers for what is made of them."""


def logits(reads: int) -> Choices:
    """Cut by how many reads registers have room for: a program holds a sum for each token of its tile and each read."""
    tiles = [tiling.matrix_product(reads), Tiling(32, 64, 4 if reads <= 32 else 8), Tiling(64, 64, 8)]
    at_once = tiling.reads_of_logits(reads)
    return _distinct(Choice.of(x.warps, BLOCK_T=x.rows, BLOCK_D=x.columns, BLOCK_R=at_once) for x in tiles)


def phase_1(spec: Phase1Spec, width: int) -> Choices:
    """One choice only where a launch goes on from outputs in memory: timing it would do so again and again.

    Args:
        spec: of the launch.
        width: of the stream.
    """
    choices = _distinct(map(_of_columns, _cut(tiling.along_width(width), width)))
    return choices[:1] if spec.continues else choices


def keys(width: int) -> Choices:
    """For the keys' gradients where the sources' backward does not sum them."""
    return _distinct(map(_of_columns, _cut(tiling.along_width(width), width)))


def gradients(spec: SourcesBackwardSpec, width: int) -> Choices:
    """For the sources' gradients; one choice only where those of the keys come with them and fill the registers.

    Args:
        spec: of the launch.
        width: of the stream.
    """
    tile = tiling.steps(width)
    tiles = [tile] if spec.sums_keys else [tile, _columns(tile, 0.5), _warps(tile, 0.5)]
    return _distinct(Choice.of(x.warps, LANES=tiling.lanes(x.columns), BLOCK_D=x.columns) for x in tiles)


def read(width: int) -> Choices:
    return _distinct(map(_of_columns, _whole(tiling.whole_rows(width))))


def read_backward(spec: ReadBackwardSpec, width: int, itemsize: int, shared_memory: int) -> Choices:
    """Other numbers of stages of the pipeline over rows, and half the warps.

    Args:
        spec: of the backward.
        width: of the stream.
        itemsize: bytes of an element.
        shared_memory: bytes of a multiprocessor.
    """
    tile = tiling.whole_rows(width)
    static = tiling.stages(spec.copied, tile, itemsize, shared_memory)
    room = tiling.most_stages(spec.copied, tile, itemsize, shared_memory)
    if tile.columns > WIDEST_TUNED:
        return (Choice.of(tile.warps, BLOCK_D=tile.columns, STAGES=static),)
    # Each stage holds addresses, for which wide rows leave no registers.
    most = static if tiling.is_wide(width) else room
    pipelines = [(tile, count) for count in (static, *range(1, most + 1))]
    if spec.copied <= MOST_COPIED_BY_HALF:
        half = _warps(tile, 0.5)
        pipelines.append((half, tiling.stages(spec.copied, half, itemsize, shared_memory)))
    return _distinct(Choice.of(x.warps, BLOCK_D=x.columns, STAGES=count) for x, count in pipelines)


def own_logits_read(width: int, dtype: torch.dtype) -> Choices:
    """Other numbers of warps.

    Args:
        width: of the stream.
        dtype: of the sources.
    """
    return _distinct(_of_lanes(x, dtype) for x in _whole(own_logits_tiling.forward_tile(width)))


def own_logits_read_backward(width: int, dtype: torch.dtype) -> Choices:
    """One choice only: what a thread holds of the sources, and so the text, is made for these warps.

    Args:
        width: of the stream.
        dtype: of the sources.
    """
    return (_of_lanes(own_logits_tiling.backward_tile(width), dtype),)


# Tiles near the static one


def _whole(tile: Tiling) -> list[Tiling]:
    """Tiles of whole rows with other numbers of warps."""
    if tile.columns > WIDEST_TUNED:
        return [tile]
    return [tile, _warps(tile, 0.5), *([_warps(tile, 2)] if _fills(_warps(tile, 2)) else [])]


def _cut(tile: Tiling, width: int) -> list[Tiling]:
    """Tiles of rows that are cut, with other columns, and with other columns of a thread."""
    wider = [_columns(tile, 2)] if tile.columns < width else []
    return [tile, _columns(tile, 0.5), *wider, _warps(tile, 0.5)]


def _warps(tile: Tiling, factor: float) -> Tiling:
    return replace(tile, warps=max(1, int(tile.warps * factor)))


def _columns(tile: Tiling, factor: float) -> Tiling:
    """A tile with other columns and the warps for as many columns of a thread as before."""
    return replace(_warps(tile, factor), columns=max(1, int(tile.columns * factor)))


def _fills(tile: Tiling) -> bool:
    return tile.warps <= MOST_WARPS and tile.columns >= 32 * tile.warps * LOADED


def _of_columns(tile: Tiling) -> Choice:
    return Choice.of(tile.warps, BLOCK_D=tile.columns)


def _of_lanes(tile: Tiling, dtype: torch.dtype) -> Choice:
    return Choice.of(tile.warps, BLOCK_D=tile.columns, **own_logits_tiling.lanes(tile, dtype))


def _distinct(choices: Iterable[Choice]) -> Choices:
    return tuple(dict.fromkeys(choices))
