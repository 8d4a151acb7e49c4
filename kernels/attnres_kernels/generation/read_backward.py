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

A row's sums over the width stop a program twice, so that programs cannot hide how long memory takes: the loop over rows
is a pipeline. While one row is worked on, the next ones are copied to shared memory, where they wait without registers.
"""

from __future__ import annotations

from attnres_kernels.generation.read import (
    backward_name,
    earlier_arguments,
    load_earlier,
    load_logits,
    merged_values,
    parts_of,
)
from attnres_kernels.generation.specs import ReadBackwardSpec
from attnres_kernels.generation.triton_text import (
    load,
    load_again,
    load_in_cache,
    over_rows,
    store,
    sum_together,
    with_additions,
)


def read_backward_text(spec: ReadBackwardSpec) -> str:
    """``read_grad`` is ``h`` and ``scalars`` ``[2, rows]`` are ``D`` and ``L``; then come the gradient of the partial
    sum, which is that of the branch too where an add is fused, and, per program, those of the vectors.
    """
    forward = spec.forward
    norm = forward.norm if spec.has_normed_grad else None
    has_weight, has_bias = bool(norm) and forward.has_weight, bool(norm) and spec.sums_bias
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
    start = ["inverse_width = 1.0 / width", *(f"{name} = tl.zeros([BLOCK_D], tl.float32)" for name in sums)]
    loop = [
        *_numbers(spec),
        "tl.store(scalars + rows + row, log_total)",
        *([load("partial", "partial_stride", "state")] if forward.has_partial else []),
        *(f"weight_{part} = tl.exp(logit_{part} - log_total)" for part in parts_of(forward)),
        *load_earlier(forward),
        *([load("normed_grad", "normed_grad_stride", "outer")] if norm else []),
        *merged_values(forward),
        *_grad(spec),
        *_row_again(),
        "# Rounded as it is stored, so that the sums here and in the sources' backward are over the same numbers.",
        "grad_stored = (grad * factor).to(read_grad.dtype.element_ty)",
        store("read_grad", "grad_stored"),
        "grad = grad_stored.to(tl.float32)",
        *([load_again("partial", "partial_stride", "state")] if spec.is_wide and forward.has_partial else []),
        *_sums(spec, {"delta": "grad * merged"} | ({"along_state": "grad * state"} if forward.has_partial else {})),
        "tl.store(scalars + row, delta)",
        *(_partial(spec) if forward.has_partial else []),
    ]
    end = [f"tl.store({name}s + program * width + column, {name}, mask=inside)" for name in sums]
    return with_additions(f"""\
@triton.jit
def {backward_name(spec, "read_backward")}(
    {", ".join(arguments)},
    factor: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):
{over_rows("0", start, loop, end, stages="STAGES")}""")


def _numbers(spec: ReadBackwardSpec) -> list[str]:
    """Loads of what is one number per row."""
    norm = spec.forward.norm if spec.has_normed_grad else None
    places = {"log_total": 0}
    places |= {"logit_partial": 1, "inverse_rms": 2} if spec.forward.has_partial else {}
    places |= {"mean": 3} if norm == "layer" else {}
    places |= {"inverse_deviation": 4} if norm else {}
    statistics = [f"{name} = tl.load(statistics + row * 5 + {place})" for name, place in places.items()]
    return [*statistics, *load_logits(spec.forward)]


def _grad(spec: ReadBackwardSpec) -> list[str]:
    """``grad``, of the value: what is given, and that of the normed value through the norm."""
    text = [load("value_grad", "value_grad_stride", "grad")] if spec.has_value_grad else []
    if spec.forward.norm and spec.has_normed_grad:
        return [*text, *_norm(spec)]
    return text or ["grad = tl.zeros([BLOCK_D], tl.float32)"]


def _norm(spec: ReadBackwardSpec) -> list[str]:
    """The gradient of the normed value, through the norm, added to ``grad``.

    Behind the sums over the row, the normed value is written in other words, or a compiler would hold it until then,
    beside what it is made of. It is not zero outside of the row, but is multiplied by what is.
    """
    forward, is_layer = spec.forward, spec.forward.norm == "layer"
    unit = f"({'merged * factor - mean' if is_layer else 'merged * factor'}) * inverse_deviation"
    opposite = "(mean - merged * factor)" if is_layer else "-merged"
    text = [f"unit = {unit}"]
    if spec.sums_bias:
        text.append("norm_bias_grad += outer")
    if forward.has_weight:
        text += [
            "norm_weight_grad += outer * unit",
            "# The pipeline copies what a loop loads, but not behind a condition; this one holds always.",
            "norm_weight_row = tl.zeros([BLOCK_D], norm_weight.dtype.element_ty)",
            "if step >= 0:",
            f"    norm_weight_row = {load_in_cache('norm_weight')}",
            "outer *= norm_weight_row.to(tl.float32)",
        ]
    sums = {"along_unit": "outer * unit"} | ({"along_ones": "outer"} if is_layer else {})
    text += _sums(spec, sums)
    text.append("along_unit *= inverse_width * inverse_deviation * inverse_deviation")
    inner = f"outer * inverse_deviation + {opposite} * along_unit"
    if is_layer:
        inner += " - along_ones * inverse_width * inverse_deviation"
    else:
        text[-1] += " * factor"
    return [*text, f"grad {'+=' if spec.has_value_grad else '='} {inner}"]


def _sums(spec: ReadBackwardSpec, sums: dict[str, str]) -> list[str]:
    """Sums over the row, together where registers hold all that is summed."""
    return [sum_together(dict([one])) for one in sums.items()] if spec.is_wide else [sum_together(sums)]


def _row_again() -> list[str]:
    """The row in other words: a compiler that does not know ``zero`` makes addresses anew, and until then has their
    registers.
    """
    return ["row = (row | zero).to(tl.uint32).to(tl.int64)"]


def _partial(spec: ReadBackwardSpec) -> list[str]:
    """Gradients of the partial sum and of its key."""
    later = [load("partial_grad_before", "partial_grad_stride", "later")] if spec.has_partial_grad else []
    # Loaded before the condition or behind it: for wide rows, ptxas spills registers in one of the two places.
    before, behind = ([], later) if spec.forward.norm == "layer" else (later, [])
    return [
        *_row_again(),
        "logit_grad = weight_partial * (along_state - delta)",
        "# With all the weight, a part has no gradient of its logit; rounding must not give it one.",
        "logit_grad = tl.where(weight_partial == 1.0, 0.0, logit_grad)",
        "to_key = logit_grad * inverse_rms",
        "to_itself = to_key * logit_partial * inverse_rms * inverse_width",
        "out = weight_partial * grad - to_itself * state",
        "key_grad += to_key * state",
        *before,
        "if to_key != 0.0:",
        f"    out += to_key * {load_in_cache('key')}",
        *behind,
        *(["out += later"] if spec.has_partial_grad else []),
        store("partial_grad", "out"),
    ]
