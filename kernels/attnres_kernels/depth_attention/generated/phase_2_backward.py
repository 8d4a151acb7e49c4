"""Text of phase 2's backward, with the norm behind and the add before.

With ``I`` phase 1's output, ``p`` the partial sum, ``w`` its weight, ``l`` its logit, ``r`` its inverse RMS, ``c`` the
scale factor, and ``g`` the gradient of the depth-attended value ``c ((1 - w) I + w p)``, that of the norm added::

    dI = c (1 - w) g            e = c w (1 - w) g . (p - I)             (gradient of l; that of the log-sum-exp is -e)
    dp = c w g + e (r k - l r^2 / d p)                                  dk = sum_tokens e r p

The value is computed again from ``I`` and ``p``. Each program sums over its own rows; programs are summed in a fixed
order afterwards, so that two runs give the same bits.
"""

from __future__ import annotations

from attnres_kernels.depth_attention.generated.phase_2 import phase_2_name
from attnres_kernels.depth_attention.generated.specs import Phase2BackwardSpec
from attnres_kernels.depth_attention.generated.writing import lines, load


def phase_2_backward_text(spec: Phase2BackwardSpec) -> str:
    """Gradients of phase 1's output, its log-sum-exp, the partial sum, and per program those of the vectors.

    The gradient of the partial sum is that of the branch as well, where an add is fused.
    """
    norm = spec.forward.norm if spec.has_normed_grad else None
    has_weight, has_bias = bool(norm) and spec.forward.has_weight, bool(norm) and spec.forward.has_bias
    arguments = [
        "inter",
        "partial",
        "key",
        *(["norm_weight"] if has_weight else []),
        "statistics",
        *(["value_grad"] if spec.has_value_grad else []),
        *(["normed_grad"] if norm else []),
        *(["partial_grad_before"] if spec.has_partial_grad else []),
        "inter_grad",
        "log_sum_grad",
        "partial_grad",
        "key_grads",
        *(["norm_weight_grads"] if has_weight else []),
        *(["norm_bias_grads"] if has_bias else []),
        "rows",
        "width",
        "rows_per_program",
        "partial_stride",
        *(["value_grad_stride"] if spec.has_value_grad else []),
        *(["normed_grad_stride"] if norm else []),
        *(["partial_grad_stride"] if spec.has_partial_grad else []),
    ]
    start = [
        "key_row = tl.load(key + column, mask=is_column, other=0.0)",
        "key_grad = tl.zeros([BLOCK_D], tl.float32)",
    ]
    if has_weight:
        start += [
            "norm_weight_row = tl.load(norm_weight + column, mask=is_column, other=0.0).to(tl.float32)",
            "norm_weight_grad = tl.zeros([BLOCK_D], tl.float32)",
        ]
    if has_bias:
        start.append("norm_bias_grad = tl.zeros([BLOCK_D], tl.float32)")
    loop = [
        load("inter", "width", "earlier"),
        load("partial", "partial_stride", "state"),
        "weight = tl.load(statistics + row, mask=is_row, other=0.0)",
        "logit = tl.load(statistics + rows + row, mask=is_row, other=0.0)",
        "inverse_rms = tl.load(statistics + 2 * rows + row, mask=is_row, other=0.0)",
        load("value_grad", "value_grad_stride", "grad")
        if spec.has_value_grad
        else "grad = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)",
    ]
    if norm:
        loop += _norm(norm, has_weight, has_bias)
    loop += [
        "grad = grad * factor",
        "logit_grad = weight * (1.0 - weight) * tl.sum(grad * (state - earlier), axis=1)",
        "out = (1.0 - weight)[:, None] * grad",
        "tl.store(inter_grad + at, out.to(inter_grad.dtype.element_ty), mask=inside)",
        "tl.store(log_sum_grad + row, -logit_grad, mask=is_row)",
        "to_key = logit_grad * inverse_rms",
        "to_itself = to_key * logit * inverse_rms / width",
        "out = weight[:, None] * grad + to_key[:, None] * key_row[None, :] - to_itself[:, None] * state",
    ]
    if spec.has_partial_grad:
        loop += [load("partial_grad_before", "partial_grad_stride", "later"), "out += later"]
    loop += [
        "tl.store(partial_grad + at, out.to(partial_grad.dtype.element_ty), mask=inside)",
        "key_grad += tl.sum(to_key[:, None] * state, axis=0)",
    ]
    end = ["tl.store(key_grads + program * width + column, key_grad, mask=is_column)"]
    if has_weight:
        end.append("tl.store(norm_weight_grads + program * width + column, norm_weight_grad, mask=is_column)")
    if has_bias:
        end.append("tl.store(norm_bias_grads + program * width + column, norm_bias_grad, mask=is_column)")
    return f"""\
@triton.jit
def {_name(spec)}(
    {", ".join(arguments)},
    factor: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
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


def _name(spec: Phase2BackwardSpec) -> str:
    given = [
        name
        for name, has in (
            ("of_value", spec.has_value_grad),
            ("of_normed", spec.has_normed_grad),
            ("of_partial", spec.has_partial_grad),
        )
        if has
    ]
    return "_".join([phase_2_name(spec.forward, "phase_2_backward"), *given])


def _norm(norm: str, has_weight: bool, has_bias: bool) -> list[str]:
    """The gradient of the normed value, through the norm, added to ``grad``."""
    text = [
        "mean = tl.load(statistics + 3 * rows + row, mask=is_row, other=0.0)",
        "inverse_deviation = tl.load(statistics + 4 * rows + row, mask=is_row, other=0.0)",
        "merged = (earlier + weight[:, None] * (state - earlier)) * factor",
        "unit = tl.where(inside, (merged - mean[:, None]) * inverse_deviation[:, None], 0.0)",
        load("normed_grad", "normed_grad_stride", "outer"),
    ]
    if has_bias:
        text.append("norm_bias_grad += tl.sum(outer, axis=0)")
    if has_weight:
        text += [
            "norm_weight_grad += tl.sum(outer * unit, axis=0)",
            "outer = outer * norm_weight_row[None, :]",
        ]
    along = "(tl.sum(outer * unit, axis=1) / width)[:, None] * unit"
    if norm == "layer":
        text.append(f"inner = outer - (tl.sum(outer, axis=1) / width)[:, None] - {along}")
    else:
        text.append(f"inner = outer - {along}")
    text.append("grad += tl.where(inside, inner * inverse_deviation[:, None], 0.0)")
    return text
