"""Text of the backward of a read with own logits: the gradients of all its sources, in one launch.

With ``u`` the weighted sum of the sources, ``c`` the scale factor and ``g`` the gradient of the value ``c u``, that of
the norm added, the gradient of ``u`` is ``h = c g``. For source ``v_i`` with logit ``l_i``, weight ``w_i`` and inverse
RMS ``r_i``, the key ``k`` and the width ``d``::

    a_i  = h . v_i          e_i = w_i (a_i - sum_j w_j a_j)        (gradient of l_i)
    dv_i = w_i h + e_i r_i k - e_i l_i r_i^2 / d v_i               dk = sum_tokens sum_i e_i r_i v_i

The value is made again from the sources where a norm needs it. Each program sums over its own rows; programs are summed
in a fixed order afterwards, so that two runs give the same bits.
"""

from __future__ import annotations

from attnres_kernels.generation.own_logits_read import KEPT, folded, sources_of, statistic, stride_of, sums, tile
from attnres_kernels.generation.read import backward_name
from attnres_kernels.generation.specs import OwnLogitsReadBackwardSpec
from attnres_kernels.generation.triton_text import load, load_vector, over_rows, store, sum_together, with_additions

_BARRIER = "tl.debug_barrier()  # another thread may go on with a sum"


def own_logits_read_backward_text(spec: OwnLogitsReadBackwardSpec) -> str:
    """Gradients of the sources, that of the partial sum being the branch's too where an add is fused; and, per program,
    those of the key and of the norm's vectors.
    """
    forward, norm = spec.forward, spec.norm
    sources, names = range(forward.sources), sources_of(forward)
    has_weight, has_bias = bool(norm) and forward.has_weight, bool(norm) and forward.has_bias
    arguments = [
        *names,
        "query",
        "key_weight",
        *(["norm_weight"] if has_weight else []),
        "statistics",
        *(["value_grad"] if spec.has_value_grad else []),
        *(["normed_grad"] if norm else []),
        *(["partial_grad_before"] if spec.has_partial_grad else []),
        *(f"source_grad_{i}" for i in sources),
        *(["partial_grad"] if forward.has_partial else []),
        "key_grads",
        *(["norm_weight_grads"] if has_weight else []),
        *(["norm_bias_grads"] if has_bias else []),
        "rows",
        "width",
        "rows_per_program",
        "zero",
        *(f"source_stride_{i}" for i in sources),
        *(["partial_stride"] if forward.has_partial else []),
        *(["value_grad_stride"] if spec.has_value_grad else []),
        *(["normed_grad_stride"] if norm else []),
        *(["partial_grad_stride"] if spec.has_partial_grad else []),
    ]
    totals = ["key_grad", *["norm_weight_grad"] * has_weight, *["norm_bias_grad"] * has_bias]
    loop = [*_read_grad(spec, has_weight, has_bias), *_delta(spec), *_gradients(spec)]
    if spec.holds_sums:
        start = [f"{name} = tl.zeros([BLOCK_D], tl.float32)" for name in totals]
        end = [f"tl.store({name}s + program * width + column, {name}, mask=inside)" for name in totals]
    else:
        zeros = "tl.zeros([BLOCK_D], tl.float32)"
        start = [f"tl.store({name}s + program * width + column, {zeros}, mask=inside)" for name in totals]
        start, end = [*start, _BARRIER], []
        loop.append(_BARRIER)
    start.insert(0, "inverse_width = 1.0 / width")
    return with_additions(f"""\
@triton.jit
def {backward_name(spec, "own_read_backward")}(
    {", ".join(arguments)},
    factor: tl.constexpr, BLOCK_D: tl.constexpr, LANES: tl.constexpr, FOLD: tl.constexpr,
):
{over_rows("0", start, loop, end)}""")


def _statistic(spec: OwnLogitsReadBackwardSpec, name: str, place: int) -> str:
    return f"{name} = tl.load({statistic(spec.forward, place)})"


def _load(spec: OwnLogitsReadBackwardSpec, place: int, is_first: bool) -> list[str]:
    """A source's row; a second time only where registers do not hold it."""
    if spec.holds_sources and not is_first:
        return []
    name = sources_of(spec.forward)[place]
    # A compiler would load all sources at once, and registers have no room for them: a barrier keeps it from that.
    text = [] if place == 0 or place % spec.at_once else ["tl.debug_barrier()"]
    return [*text, load(name, stride_of(name), tile(name))]


def _again(spec: OwnLogitsReadBackwardSpec, operation: str) -> list[str]:
    """Where sources are read again, their addresses are made again: ``row`` is the same, but a compiler cannot tell."""
    return [] if spec.holds_sources else [f"row = (row {operation} zero).to(tl.uint32).to(tl.int64)"]


def _add(spec: OwnLogitsReadBackwardSpec, name: str, value: str) -> str:
    """Add to a sum over tokens, in registers, or where they have no room for it, in the program's own row in memory."""
    if spec.holds_sums:
        return f"{name} += {value}"
    at = f"{name}s + program * width + column"
    return f"tl.store({at}, tl.load({at}, mask=inside, other=0.0) + {value}, mask=inside)"


def _read_grad(spec: OwnLogitsReadBackwardSpec, has_weight: bool, has_bias: bool) -> list[str]:
    """``grad``, which is ``h``."""
    text = [_statistic(spec, "log_total", 0)]
    if spec.has_value_grad:
        text.append(load("value_grad", "value_grad_stride", "grad"))
    else:
        text.append("grad = tl.zeros([BLOCK_D], tl.float32)")
    if spec.norm:
        text.append(load("normed_grad", "normed_grad_stride", "outer"))
        for place, name in enumerate(sources_of(spec.forward)):
            text += [*_load(spec, place, is_first=True), *_weight(spec, place)]
            text.append(f"merged {'+=' if place else '='} weight * {tile(name)}")
        text += _norm(spec, has_weight, has_bias)
    return [*text, "grad = grad * factor"]


def _norm(spec: OwnLogitsReadBackwardSpec, has_weight: bool, has_bias: bool) -> list[str]:
    """The gradient ``outer`` of the normed value, through the norm, added to ``grad``."""
    is_layer = spec.norm == "layer"
    text = [_statistic(spec, "inverse_deviation", 2), *([_statistic(spec, "mean", 1)] if is_layer else [])]
    centered = "(merged * factor - mean)" if is_layer else "merged * factor"
    text.append(f"unit = tl.where(inside, {centered} * inverse_deviation, 0.0)")
    if has_bias:
        text.append(_add(spec, "norm_bias_grad", "outer"))
    if has_weight:
        text += [
            _add(spec, "norm_weight_grad", "outer * unit"),
            load_vector("norm_weight", "norm_weight_row"),
            "outer = outer * norm_weight_row",
        ]
    text += sums({"along_unit": "outer * unit"} | ({"along_ones": "outer"} if is_layer else {}))
    text.append("inner = outer - along_unit * inverse_width * unit")
    if is_layer:
        text.append("inner = inner - along_ones / width")
    return [*text, "grad += tl.where(inside, inner * inverse_deviation, 0.0)"]


def _delta(spec: OwnLogitsReadBackwardSpec) -> list[str]:
    """``along_i``, the product of ``grad`` with each source, and ``delta``, their sum with the weights."""
    names = sources_of(spec.forward)
    text = _again(spec, "|") if spec.norm else []
    for place, name in enumerate(names):
        text += [*_load(spec, place, spec.norm is None), f"along_{name} = {folded(f'grad * {tile(name)}')}"]
    text.append(sum_together({f"along_{name}": f"along_{name}" for name in names}))
    for place, name in enumerate(names):
        text += [*_weight(spec, place), f"delta {'+=' if place else '='} weight * along_{name}"]
    return text


def _weight(spec: OwnLogitsReadBackwardSpec, place: int) -> list[str]:
    """Made where it is needed, each time: there are not registers for the weights of all sources."""
    return [_statistic(spec, "logit", KEPT + place), "weight = tl.exp(logit - log_total)"]


def _gradients(spec: OwnLogitsReadBackwardSpec) -> list[str]:
    """One source after the other. Its scalars are read and made again: there are too many to hold them."""
    names = sources_of(spec.forward)
    text = [
        *_again(spec, "^"),
        load_vector("query", "key_row"),
        load_vector("key_weight", "key_weight_row"),
        "key_row = key_row * key_weight_row",
    ]
    for place, name in enumerate(names):
        text += [
            *_load(spec, place, is_first=False),
            *_weight(spec, place),
            _statistic(spec, "inverse_rms", KEPT + len(names) + place),
            f"logit_grad = weight * (along_{name} - delta)",
            "# With all the weight, a source has no gradient of its logit; rounding must not give it one.",
            "logit_grad = tl.where(weight == 1.0, 0.0, logit_grad)",
            "to_key = logit_grad * inverse_rms",
            "to_itself = to_key * logit * inverse_rms * inverse_width",
            f"out = weight * grad + to_key * key_row - to_itself * {tile(name)}",
            f"to_key_row {'+=' if place else '='} to_key * {tile(name)}",
        ]
        if name == "partial" and spec.has_partial_grad:
            text += [load("partial_grad_before", "partial_grad_stride", "later"), "out += later"]
        text.append(store("partial_grad" if name == "partial" else name.replace("source", "source_grad"), "out"))
    return [*text, _add(spec, "key_grad", "to_key_row")]
