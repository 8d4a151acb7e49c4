"""Text of a read's backward, with the norm behind and the add before.

With ``u`` the weighted sum of the parts, ``c`` the scale factor and ``g`` the gradient of the value ``c u``, that of
the norm added, the gradient of ``u`` is ``h = c g`` and, for a part with weight ``w``, logit ``l`` and value ``v``::

    D = h . u          e = w (h . v - D)      (gradient of l)

The completed blocks need no more than ``h``, ``D`` and the log-sum-exp ``L``, since ``w = exp(l - L)``: their gradients
are made for several reads at once by ``sources_backward``. The partial sum ``p`` with inverse RMS ``r`` and key ``k``
gets its own here::

    dp = w h + e (r k - l r^2 / d p)          dk = sum_tokens e r p

The value is computed again from the parts. Each program sums over its own rows; programs are summed in a fixed order
afterwards, so that two runs give the same bits.
"""

from __future__ import annotations

from attnres_kernels.depth_attention.generated.read import (
    earlier_arguments,
    load_logits,
    merged_values,
    parts_of,
    read_name,
)
from attnres_kernels.depth_attention.generated.specs import ReadBackwardSpec
from attnres_kernels.depth_attention.generated.writing import load, load_again, load_vector, over_rows, store

BARRIER = "tl.debug_barrier()  # another thread may go on with a sum"

_KEY = load_vector("key", "key_row")
_LOG_TOTAL = "tl.store(scalars + rows + row, log_total)"
"""Both stand where they cost fewest registers, by what offline compilation says."""


def read_backward_text(spec: ReadBackwardSpec) -> str:
    """``read_grad`` is ``h`` and ``scalars`` ``[2, rows]`` are ``D`` and ``L``; then come the gradient of the partial
    sum, which is that of the branch too where an add is fused, and, per program, those of the vectors.
    """
    forward = spec.forward
    norm = forward.norm if spec.has_normed_grad else None
    has_weight, has_bias = bool(norm) and forward.has_weight, bool(norm) and forward.has_bias
    pointers, strides = earlier_arguments(forward)
    arguments = [
        *pointers,
        *(["partial", "key"] if forward.has_partial else []),
        *(["norm_weight"] if has_weight else []),
        "statistics",
        *(["value_grad"] if spec.has_value_grad else []),
        *(["normed_grad"] if norm else []),
        *(["partial_grad_before"] if spec.has_partial_grad else []),
        "read_grad",
        "scalars",
        *(["partial_grad", "key_grads"] if forward.has_partial else []),
        *(["norm_weight_grads"] if has_weight else []),
        *(["norm_bias_grads"] if has_bias else []),
        "rows",
        "width",
        "rows_per_program",
        "zero",
        *strides,
        *(["partial_stride"] if forward.has_partial else []),
        *(["value_grad_stride"] if spec.has_value_grad else []),
        *(["normed_grad_stride"] if norm else []),
        *(["partial_grad_stride"] if spec.has_partial_grad else []),
    ]
    sums = ["key_grad"] if forward.has_partial else []
    sums += ["norm_weight_grad"] if has_weight else []
    sums += ["norm_bias_grad"] if has_bias else []
    loop = [
        _statistic("log_total", 0),
        *load_logits(forward),
    ]
    if forward.has_partial:
        loop += [_statistic("logit_partial", 1), load("partial", "partial_stride", "state")]
    loop += [f"weight_{part} = tl.exp(logit_{part} - log_total)" for part in parts_of(forward)]
    loop += merged_values(forward)
    if spec.has_value_grad:
        loop.append(load("value_grad", "value_grad_stride", "grad"))
    else:
        loop.append("grad = tl.zeros([BLOCK_D], tl.float32)")
    if norm:
        loop += _norm(norm, has_weight, has_bias, spec.is_wide)
    loop += [
        "# Rounded as it is stored, so that the sums here and in the sources' backward are over the same numbers.",
        "grad_stored = (grad * factor).to(read_grad.dtype.element_ty)",
        store("read_grad", "grad_stored"),
        "grad = grad_stored.to(tl.float32)",
        *([_KEY] if forward.has_partial and not spec.is_wide else []),
        "delta = tl.sum(grad * merged)",
        "tl.store(scalars + row, delta)",
        *([_LOG_TOTAL] if spec.is_wide or not forward.has_partial else []),
    ]
    if forward.has_partial:
        loop += _partial(spec)
    if spec.is_wide:
        loop.append(BARRIER)
        zeros = "tl.zeros([BLOCK_D], tl.float32)"
        start = [f"tl.store({name}s + program * width + column, {zeros}, mask=inside)" for name in sums]
        start, end = [*start, BARRIER], []
    else:
        start = [f"{name} = tl.zeros([BLOCK_D], tl.float32)" for name in sums]
        end = [f"tl.store({name}s + program * width + column, {name}, mask=inside)" for name in sums]
    return f"""\
@triton.jit
def {_name(spec)}(
    {", ".join(arguments)},
    factor: tl.constexpr, BLOCK_D: tl.constexpr,
):
{over_rows("0", start, loop, end)}"""


def _name(spec: ReadBackwardSpec) -> str:
    given = [
        name
        for name, has in (
            ("of_value", spec.has_value_grad),
            ("of_normed", spec.has_normed_grad),
            ("of_partial", spec.has_partial_grad),
        )
        if has
    ]
    return "_".join([read_name(spec.forward, "read_backward"), *given, *["wide"] * spec.is_wide])


def _statistic(name: str, place: int) -> str:
    return f"{name} = tl.load(statistics + row * 5 + {place})"


def _add(name: str, value: str, is_wide: bool) -> str:
    """Add to a sum over tokens, in registers, or where they have no room for it, in the program's own row in memory."""
    if not is_wide:
        return f"{name} += {value}"
    at = f"{name}s + program * width + column"
    return f"tl.store({at}, tl.load({at}, mask=inside, other=0.0) + {value}, mask=inside)"


def _norm(norm: str, has_weight: bool, has_bias: bool, is_wide: bool) -> list[str]:
    """The gradient of the normed value, through the norm, added to ``grad``."""
    centered = "merged * factor"
    text = [_statistic("inverse_deviation", 4)]
    if norm == "layer":
        text.append(_statistic("mean", 3))
        centered = "(merged * factor - mean)"
    unit = f"unit = tl.where(inside, {centered} * inverse_deviation, 0.0)"
    weighted = ["outer = outer * norm_weight_row"] if has_weight else []
    text += [unit, load("normed_grad", "normed_grad_stride", "outer")]
    if has_bias:
        text.append(_add("norm_bias_grad", "outer", is_wide))
    if has_weight:
        text += [
            _add("norm_weight_grad", "outer * unit", is_wide),
            load_vector("norm_weight", "norm_weight_row"),
        ]
    text += [*weighted, "along_unit = tl.sum(outer * unit) / width"]
    if norm == "layer":
        text.append("along_ones = tl.sum(outer) / width")
    if is_wide:
        vector = [load_vector("norm_weight + zero", "norm_weight_row")] if has_weight else []
        text += [unit, load_again("normed_grad", "normed_grad_stride", "outer"), *vector, *weighted]
    text.append("inner = outer - along_unit * unit")
    if norm == "layer":
        text.append("inner = inner - along_ones")
    text.append("grad += tl.where(inside, inner * inverse_deviation, 0.0)")
    return text


def _partial(spec: ReadBackwardSpec) -> list[str]:
    """Gradients of the partial sum and of its key."""
    text = [
        load_again("partial", "partial_stride", "state"),
        "logit_grad = weight_partial * (tl.sum(grad * state) - delta)",
        "# With all the weight, a part has no gradient of its logit; rounding must not give it one.",
        "logit_grad = tl.where(weight_partial == 1.0, 0.0, logit_grad)",
        _statistic("inverse_rms", 2),
        _statistic("logit_partial", 1),
        "to_key = logit_grad * inverse_rms",
        "to_itself = to_key * logit_partial * inverse_rms / width",
        *([_KEY] if spec.is_wide else []),
        "out = weight_partial * grad + to_key * key_row - to_itself * state",
    ]
    if spec.has_partial_grad:
        text += [load("partial_grad_before", "partial_grad_stride", "later"), "out += later"]
    return [
        *text,
        store("partial_grad", "out"),
        *([] if spec.is_wide else [_LOG_TOTAL]),
        _add("key_grad", "to_key * state", spec.is_wide),
    ]
