"""Text of the backward of several reads into completed blocks: a kernel for everything, and one for keys apart.

With ``h_s``, ``D_s`` and ``L_s`` of read ``s`` as its own backward gives them, ``l_si`` the logit of source ``i``,
``r_i`` its inverse RMS and ``d`` the width::

    w_si = exp(l_si - L_s)    e_si = w_si (h_s . v_i - D_s)                             (gradient of logit l_si)
    dv_i = sum_s w_si h_s + sum_s e_si r_i k_s - (sum_s e_si l_si) r_i^2 / d v_i
    dk_s = sum_tokens sum_i e_si r_i v_i

A program goes over the rows of a token twice: first for the products ``h_s . v_i`` and ``v_i . v_i``, then for the
gradients. The second time they come from the cache, so that memory is read once. Sums for the keys are over tokens: a
program that has several tokens holds them in registers, where those suffice (``SourcesBackwardSpec.tiles``), and else
another kernel reads the sources once more.

No source needs another one's numbers, so that sources and reads are cut into launches freely; a launch adds to what the
launch before it, or a later group of reads, gave to a source. Sums over tokens are made in two steps, per program and
then over programs in a fixed order, so that two runs give the same bits.
"""

from __future__ import annotations

from itertools import accumulate

from attnres_kernels.generation.specs import SourcesBackwardSpec
from attnres_kernels.generation.triton_text import (
    ROW,
    along,
    lines,
    load,
    load_vector,
    over_rows,
    store,
    sum_together,
    with_additions,
)

AT_ONCE = 4
"""Sources that a thread works on at once: what belongs to reads is loaded once for them all."""

AT_ONCE_OF: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {
    (1, 1): {3: (2, 1), 5: (3, 2), 6: (3, 3)},
    (1, 2): {8: (2, 2, 2, 2), 9: (3, 3, 3)},
    (1, 3): {6: (2, 2, 2), 7: (3, 3, 1), 9: (2, 2, 2, 2, 1)},
    (1, 4): {5: (3, 2), 6: (3, 3)},
    (2, 1): {5: (3, 2), 6: (2, 2, 2), 7: (3, 3, 1), 8: (3, 3, 2)},
    (2, 0): {9: (3, 3, 3)},
    (3, 0): {6: (2, 2, 2), 7: (3, 3, 1), 9: (2, 2, 2, 2, 1)},
    (3, 1): {6: (3, 3), 7: (3, 3, 1)},
    (4, 0): {5: (1, 1, 1, 1, 1), 6: (3, 3), 7: (1, 1, 1, 1, 1, 1, 1), 9: (3, 3, 3)},
    (4, 1): {6: (3, 3), 7: (3, 3, 1), 8: (3, 3, 2), 9: (2, 2, 2, 2, 1)},
    (5, 0): {5: (3, 2), 6: (2, 2, 2), 8: (2, 2, 2, 2)},
    (6, 0): {5: (1, 4), 7: (5, 2), 9: (3, 3, 3)},
    (7, 0): {5: (5,)},
    (8, 0): {6: (2, 2, 2), 8: (2, 2, 2, 2)},
}
"""Other numbers by reads and tiles of sums for keys, then by sources, where ptxas spills registers with ``AT_ONCE``:
found by compiling for all targets.
"""


def gradients_text(spec: SourcesBackwardSpec) -> str:
    """Gradients of the sources ``[rows, width]``; and those of the keys per program ``[programs, reads, width]``, or
    ``to_keys`` ``e_si r_i`` ``[rows, sources, reads]`` for ``keys_text``.
    """
    sources, reads = range(spec.sources), range(len(spec.reads))
    arguments = [
        *(f"source_{i}" for i in sources),
        *(f"logits_{i}" for i in sources),
        *(f"read_grad_{s}" for s in reads),
        *(f"scalars_{s}" for s in reads),
        *(f"carried_{i}" for i in spec.carried),
        "keys",
        *(f"source_grad_{i}" for i in sources),
        "weights",
        "to_keys",
        "to_selves",
        *(["key_grads"] if spec.sums_keys else []),
        "rows",
        "width",
        *(["rows_per_program"] if spec.sums_keys else []),
        "zero",
        *(f"source_stride_{i}" for i in sources),
        *(f"logits_stride_{i}" for i in sources),
        *(f"read_grad_stride_{s}" for s in reads),
        *(f"carried_stride_{i}" for i in spec.carried),
    ]
    return with_additions(f"""\
@triton.jit
def {_name("gradients", spec)}(
    {", ".join(arguments)},
    eps: tl.constexpr, BLOCK_D: tl.constexpr, LANES: tl.constexpr,
):
{_many_tokens(spec) if spec.sums_keys else _one_token(spec)}""")


def keys_text(spec: SourcesBackwardSpec) -> str:
    """Per program the gradients of the keys ``[programs, reads, width]``, from ``to_keys`` of ``gradients_text``."""
    sources, reads = range(spec.sources), range(len(spec.reads))
    arguments = [*(f"source_{i}" for i in sources), "to_keys", "key_grads", "rows", "width", "rows_per_program", "zero"]
    arguments += [f"source_stride_{i}" for i in sources]
    loop = []
    for i in sources:
        loop.append(load(f"source_{i}", f"source_stride_{i}", "value"))
        for s in reads:
            loop += [f"to_key = tl.load(to_keys + {_pair(spec, i, s, 'row')})", f"key_grad_{s} += to_key * value"]
    start = [f"key_grad_{s} = tl.zeros([BLOCK_D], tl.float32)" for s in reads]
    end = [_store_key_grad(spec, s, f"key_grad_{s}") for s in reads]
    return f"""\
@triton.jit
def {_name("keys", spec)}(
    {", ".join(arguments)},
    BLOCK_D: tl.constexpr,
):
{over_rows("tl.program_id(1)", start, loop, end)}"""


def _name(kind: str, spec: SourcesBackwardSpec) -> str:
    tiles = f"_tiles{spec.tiles}" if spec.tiles > 1 else ""
    return f"{kind}_n{spec.sources}_s{'_'.join(map(str, spec.reads))}{tiles}"


def _pair(spec: SourcesBackwardSpec, i: int, s: int, place: str = "place") -> str:
    """Where a number of a source and a read is, in ``[rows or programs, sources, reads]``."""
    return f"{place} * {spec.sources * len(spec.reads)} + {i * len(spec.reads) + s}"


def _of_source(spec: SourcesBackwardSpec, i: int) -> str:
    return f"place * {spec.sources} + {i}"


def _again(spec: SourcesBackwardSpec) -> list[str]:
    """The row again, and the place of its numbers, those of the program where each has many tokens.

    A compiler cannot know them to be the same: it makes addresses anew instead of keeping them in registers.
    """
    place = "program + (row & zero)" if spec.sums_keys else "row"
    return ["row = (row | zero).to(tl.uint32).to(tl.int64)", f"place = {place}"]


def _store_key_grad(spec: SourcesBackwardSpec, s: int, value: str) -> str:
    return f"tl.store(key_grads + (program * {len(spec.reads)} + {s}) * width + column, {value}, mask=inside)"


def _groups(spec: SourcesBackwardSpec) -> list[range]:
    """The sources, as many to a group as a thread works on at once."""
    usual = tuple(min(AT_ONCE, spec.sources - i) for i in range(0, spec.sources, AT_ONCE))
    sizes = AT_ONCE_OF.get((len(spec.reads), spec.tiles), {}).get(spec.sources, usual)
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


# The two bodies


def _one_token(spec: SourcesBackwardSpec) -> str:
    """A program that has one token, and goes over its rows tile by tile."""
    text = [ROW, *_all_scalars(spec)]
    for group in _groups(spec):
        text += _over_tiles(spec, _gradients(spec, group))
    return f"    {lines(text, 4)}\n"


def _many_tokens(spec: SourcesBackwardSpec) -> str:
    """A program that goes over tokens of its own, and has sums for the keys of each tile of a row in registers."""
    tiles, reads = range(spec.tiles), range(len(spec.reads))
    start = [f"key_grad_{s}_{tile} = tl.zeros([BLOCK_D], tl.float32)" for s in reads for tile in tiles]
    loop, end = _all_scalars(spec), []
    for group in _groups(spec):
        loop += _over_tiles(spec, _gradients(spec, group))
    for tile in tiles:
        for group in _groups(spec):
            loop += _over_tiles(spec, _keys(spec, group, f"_{tile}"), *([tile] if spec.tiles > 1 else []))
        end += [f"column = {tile} * BLOCK_D + tl.arange(0, BLOCK_D)", "inside = column < width"]
        end += [_store_key_grad(spec, s, f"key_grad_{s}_{tile}") for s in reads]
    return over_rows("0", start, loop, end)


def _over_tiles(spec: SourcesBackwardSpec, statements: list[str], tile: int | None = None) -> list[str]:
    """A loop over the tiles of a row, or over one of them, so that a compiler does not move its content out of it."""
    tiles = "0, width" if tile is None else f"{tile} * BLOCK_D, tl.minimum({tile + 1} * BLOCK_D, width)"
    of_step = "tl.multiple_of(step & zero, 16) + " if spec.sums_keys else ""
    column = [f"column = start + {of_step}tl.arange(0, BLOCK_D)", "inside = column < width"]
    return [f"for start in range({tiles}, BLOCK_D):", *(f"    {x}" for x in [*column, *statements])]


# What both do with a token


def _all_scalars(spec: SourcesBackwardSpec) -> list[str]:
    text = []
    for group in _groups(spec):
        text += [f"{name} = tl.zeros([LANES], tl.float32)" for name in _sums(spec, group)]
        text += [*_over_tiles(spec, _products(spec, group)), *_scalars(spec, group)]
    return [*text, "tl.debug_barrier()"]


def _sums(spec: SourcesBackwardSpec, group: range) -> list[str]:
    return [name for i in group for name in (f"squares_{i}", *(f"products_{i}_{s}" for s in range(len(spec.reads))))]


def _products(spec: SourcesBackwardSpec, group: range) -> list[str]:
    """Add to the sums what a tile has: each thread sums its own columns."""

    def add(name: str, one: str, other: str) -> str:
        return f"{name} += tl.sum(tl.reshape({one} * {other}, (LANES, BLOCK_D // LANES)), axis=1)"

    text = [*_again(spec), *(load(f"source_{i}", f"source_stride_{i}", f"value_{i}") for i in group)]
    text += [add(f"squares_{i}", f"value_{i}", f"value_{i}") for i in group]
    for s in range(len(spec.reads)):
        text.append(load(f"read_grad_{s}", f"read_grad_stride_{s}", "grad"))
        text += [add(f"products_{i}_{s}", "grad", f"value_{i}") for i in group]
    return text


def _scalars(spec: SourcesBackwardSpec, group: range) -> list[str]:
    """Per source and read ``weights`` ``w_si`` and ``to_keys`` ``e_si r_i``, and per source ``to_selves``, the factor
    of ``v_i`` in its own gradient. They go through memory, which is to say the cache, for want of registers.
    """
    text = [sum_together({name: name for name in _sums(spec, group)}), *_again(spec)]
    for i in group:
        text += [f"inverse_rms = tl.rsqrt(squares_{i} / width + eps)", "to_itself = 0.0"]
        for s, read in enumerate(spec.reads):
            text += [
                f"logit = tl.load(logits_{i} + {along(f'logits_stride_{i}')} + {read})",
                f"weight = tl.exp(logit - tl.load(scalars_{s} + rows + row))",
                f"logit_grad = weight * (products_{i}_{s} - tl.load(scalars_{s} + row))",
                "# With all the weight, a source has no gradient of its logit; rounding must not give it one.",
                "logit_grad = tl.where(weight == 1.0, 0.0, logit_grad)",
                "to_itself += logit_grad * logit",
                f"tl.store(weights + {_pair(spec, i, s)}, weight)",
                f"tl.store(to_keys + {_pair(spec, i, s)}, logit_grad * inverse_rms)",
            ]
        text.append(f"tl.store(to_selves + {_of_source(spec, i)}, to_itself * inverse_rms * inverse_rms / width)")
    return text


def _gradients(spec: SourcesBackwardSpec, group: range) -> list[str]:
    """Gradients of a tile of these sources."""
    text = _again(spec)
    for i in group:
        text += [
            load(f"source_{i}", f"source_stride_{i}", f"value_{i}"),
            f"total_{i} = -tl.load(to_selves + {_of_source(spec, i)}) * value_{i}",
        ]
        if i in spec.carried:
            text += [load(f"carried_{i}", f"carried_stride_{i}", "later"), f"total_{i} += later"]
    for s, read in enumerate(spec.reads):
        text += [
            load(f"read_grad_{s}", f"read_grad_stride_{s}", "grad"),
            load_vector(f"keys + {read} * width + tl.multiple_of(row & zero, 16)", "key"),
        ]
        for i in group:
            text += [
                f"to_key = tl.load(to_keys + {_pair(spec, i, s)})",
                f"total_{i} += tl.load(weights + {_pair(spec, i, s)}) * grad + to_key * key",
            ]
    return text + [store(f"source_grad_{i}", f"total_{i}") for i in group]


def _keys(spec: SourcesBackwardSpec, group: range, tile: str) -> list[str]:
    """What these sources add to the sums for the keys."""
    text = _again(spec)
    for i in group:
        text.append(load(f"source_{i}", f"source_stride_{i}", "value"))
        for s in range(len(spec.reads)):
            text.append(f"key_grad_{s}{tile} += tl.load(to_keys + {_pair(spec, i, s)}) * value")
    return text
