"""Text of phase 1's backward: two kernels, one for sums along the width, one for the gradients.

With ``g_s`` the gradient of output ``s``, ``h_s`` that of its log-sum-exp, ``l_si`` and ``w_si`` logit and weight of
source ``i``, ``r_i`` its inverse RMS and ``d`` the width::

    a_si = g_s . v_i          e_si = w_si (a_si - sum_j w_sj a_sj + h_s)            (gradient of logit l_si)
    dv_i = sum_s w_si g_s + sum_s e_si r_i k_s - (sum_s e_si l_si) r_i^2 / d v_i    dk_s = sum_tokens sum_i e_si r_i v_i

Nothing but sources, keys and logits is kept from the forward. Sums over tokens are made in two stages, per program and
then over programs in a fixed order, so that two runs give the same bits.
"""

from __future__ import annotations

from attnres_kernels.depth_attention.generated.specs import Phase1BackwardSpec
from attnres_kernels.depth_attention.generated.writing import lines, load


def _name(kind: str, spec: Phase1BackwardSpec) -> str:
    return f"phase_1_{kind}_n{spec.sources}_s{spec.reads}"


def projections_text(spec: Phase1BackwardSpec) -> str:
    """Per token: ``g_s . v_i`` for each read with a gradient and each source, and the inverse RMS of each source.

    projected ``[grads, sources, rows]`` and inverse_rms ``[sources, rows]``. The softmax of a handful of numbers per
    token that follows is left to torch.
    """
    sources = range(spec.sources)
    arguments = [
        *(f"source_{i}" for i in sources),
        *(f"grad_{s}" for s in spec.grads),
        "projected",
        "inverse_rms",
        "rows",
        "width",
        *(f"source_stride_{i}" for i in sources),
        *(f"grad_stride_{s}" for s in spec.grads),
    ]
    start = [f"squares_{i} = tl.zeros([BLOCK_T], tl.float32)" for i in sources]
    start += [f"projected_{s}_{i} = tl.zeros([BLOCK_T], tl.float32)" for s in spec.grads for i in sources]
    loop = [load(f"grad_{s}", f"grad_stride_{s}", f"grad_value_{s}") for s in spec.grads]
    for i in sources:
        loop += [
            load(f"source_{i}", f"source_stride_{i}", "value"),
            f"squares_{i} += tl.sum(value * value, axis=1)",
            *(f"projected_{s}_{i} += tl.sum(grad_value_{s} * value, axis=1)" for s in spec.grads),
        ]
    end = [
        f"tl.store(inverse_rms + {i} * rows + row, tl.rsqrt(squares_{i} / width + eps), mask=is_row)" for i in sources
    ]
    end += [
        f"tl.store(projected + {k * spec.sources + i} * rows + row, projected_{s}_{i}, mask=is_row)"
        for k, s in enumerate(spec.grads)
        for i in sources
    ]
    return f"""\
@triton.jit
def {_name("projections", spec)}(
    {", ".join(arguments)},
    eps: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = row < rows
    {lines(start, 4)}
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = is_row[:, None] & (column < width)[None, :]
        {lines(loop, 8)}
    {lines(end, 4)}
"""


def gradients_text(spec: Phase1BackwardSpec) -> str:
    """Gradients of the sources ``[rows, width]``, and per program those of the keys ``[programs, reads, width]``.

    weights and to_keys ``[sources, reads, rows]``: ``w_si`` and ``e_si r_i``; to_selves ``[sources, rows]``: the factor
    of ``v_i`` in its own gradient.
    """
    sources, reads = range(spec.sources), range(spec.reads)
    arguments = [
        *(f"source_{i}" for i in sources),
        *(f"grad_{s}" for s in spec.grads),
        *(f"carried_{i}" for i in spec.carried),
        "keys",
        "weights",
        "to_keys",
        "to_selves",
        *(f"source_grad_{i}" for i in sources),
        "key_grads",
        "rows",
        "width",
        "rows_per_program",
        *(f"source_stride_{i}" for i in sources),
        *(f"grad_stride_{s}" for s in spec.grads),
        *(f"carried_stride_{i}" for i in spec.carried),
    ]
    start = [f"key_grad_{s} = tl.zeros([BLOCK_D], tl.float32)" for s in reads]
    loop = [load(f"grad_{s}", f"grad_stride_{s}", f"grad_value_{s}") for s in spec.grads]
    for i in sources:
        loop += _source(spec, i)
    end = [
        f"tl.store(key_grads + (program * {spec.reads} + {s}) * width + column, key_grad_{s}, mask=is_column)"
        for s in reads
    ]
    return f"""\
@triton.jit
def {_name("gradients", spec)}(
    {", ".join(arguments)},
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_column = column < width
    {lines(start, 4)}
    for step in range(0, rows_per_program, BLOCK_T):
        row = program * rows_per_program + step + tl.arange(0, BLOCK_T)
        is_row = row < rows
        inside = is_row[:, None] & is_column[None, :]
        at = row[:, None] * width + column[None, :]
        {lines(loop, 8)}
    {lines(end, 4)}
"""


def _source(spec: Phase1BackwardSpec, i: int) -> list[str]:
    text = [
        f"# source {i}",
        load(f"source_{i}", f"source_stride_{i}", "value"),
        f"to_itself = tl.load(to_selves + {i} * rows + row, mask=is_row, other=0.0)",
        "source_grad = -to_itself[:, None] * value",
    ]
    if i in spec.carried:
        text += [load(f"carried_{i}", f"carried_stride_{i}", "later"), "source_grad += later"]
    for s in range(spec.reads):
        place = i * spec.reads + s
        if s in spec.grads:
            text += [
                f"weight = tl.load(weights + {place} * rows + row, mask=is_row, other=0.0)",
                f"source_grad += weight[:, None] * grad_value_{s}",
            ]
        text += [
            f"to_key = tl.load(to_keys + {place} * rows + row, mask=is_row, other=0.0)",
            # From the cache each time: there are no registers for all keys beside all their gradients.
            f"key = tl.load(keys + {s} * width + column, mask=is_column, other=0.0)",
            "source_grad += to_key[:, None] * key[None, :]",
            f"key_grad_{s} += tl.sum(to_key[:, None] * value, axis=0)",
        ]
    text.append(f"tl.store(source_grad_{i} + at, source_grad.to(source_grad_{i}.dtype.element_ty), mask=inside)")
    return text
