"""Rules of operators that pass a degree through, or leave nothing of it: views, sums, choices, fills, writes."""

from __future__ import annotations

import math

from attnres_passes.analyses.aten_trace import LOCAL_PART, SPREAD, STALE_ALIAS, Ref
from attnres_passes.analyses.degrees.degree import LARGEST_EPS, RULES, UNKNOWN, ZERO, Call, Degree, common, rule


@rule(
    "view _unsafe_view reshape permute transpose t expand slice select squeeze unsqueeze split split_with_sizes "
    "unbind clone alias detach contiguous lift_fresh neg sum mean cumsum flip roll repeat gather index "
    "index_select diagonal tril triu unfold as_strided avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d reflection_pad1d reflection_pad2d abs relu leaky_relu "
    "amax amin std view_as_real view_as_complex real imag _conj pixel_shuffle pixel_unshuffle"
)
def homogeneous(call: Call) -> Degree:
    """f(c x) = c f(x) for c > 0: the degree of the first tensor passes through."""
    return call.of_first()


@rule("_to_copy")
def cast(call: Call) -> Degree:
    """Rounding to integers is felt at one scale and not at another."""
    dtype = call.op.kwargs.get("dtype")
    is_rounding = dtype is not None and not dtype.is_floating_point and not dtype.is_complex
    return UNKNOWN if is_rounding else call.of_first()


@rule("linalg_vector_norm")
def vector_norm(call: Call) -> Degree:
    """All norms but the one of order 0, which counts."""
    return UNKNOWN if call.argument(1, "ord", 2) == 0 else call.of_first()


@rule("max min topk sort max_pool2d_with_indices native_dropout kthvalue mode cummax cummin")
def homogeneous_with_indices(call: Call) -> list[Degree]:
    """The first output scales with the input; positions and masks beside it do not change."""
    degrees = call.tensors(call.op.args)
    beside = ZERO if degrees[0] is not UNKNOWN else UNKNOWN
    return [common(degrees), *[beside] * (len(call.op.outputs) - 1)]


@rule("argmax argmin argsort sign isinf isnan isfinite")
def invariant_if_known(call: Call) -> Degree:
    return ZERO if call.degree() is not UNKNOWN else UNKNOWN


@rule("gt lt ge le eq ne")
def comparison(call: Call) -> Degree:
    """Comparing values of one degree, or a value against 0, does not depend on c."""
    right = call.op.args[1]
    if isinstance(right, Ref):
        compared = common([call.degree(0), call.degree(1)])
    else:
        compared = call.degree() if right == 0 else UNKNOWN
    return ZERO if compared is not UNKNOWN else UNKNOWN


@rule("clamp clamp_min")
def lower_bound(call: Call) -> Degree:
    """A tiny lower bound guards a division, as an eps does; any other bound is a signal."""
    low, high = call.argument(1, "min"), call.argument(2, "max")
    is_guard = high is None and isinstance(low, (int, float)) and 0 <= low <= LARGEST_EPS
    return call.degree() if is_guard else UNKNOWN


@rule("where")
def selection(call: Call) -> Degree:
    if len(call.op.args) < 3 or call.degree() != ZERO:
        return UNKNOWN
    chosen = [argument for argument in call.op.args[1:3] if not call.is_zeros(argument)]
    return common([call.of(argument) for argument in chosen]) if chosen else ZERO


@rule("masked_fill constant_pad_nd")
def fill_with_constant(call: Call) -> Degree:
    """Zeros and infinities are the same at every scale."""
    value = call.argument(2, "value", 0)
    is_scale_free = isinstance(value, (int, float)) and (value == 0 or math.isinf(value))
    return call.of_first() if is_scale_free else UNKNOWN


@rule("cat stack")
def concatenation(call: Call) -> Degree:
    return common([call.of(part) for part in call.op.args[0]])


@rule("copy fill")
def overwrite(call: Call) -> Degree:
    return call.degree(1)


@rule("index_add index_copy scatter scatter_add slice_scatter select_scatter index_put _index_put_impl masked_scatter")
def write_into(call: Call) -> Degree:
    """Target and values must scale alike; positions must not scale at all."""
    target, *positions, values = call.tensors((call.op.args, call.op.kwargs))
    return common([target, values]) if all(degree == ZERO for degree in positions) else UNKNOWN


def _stale_alias(call: Call) -> Degree:
    return common([call.of(argument) for argument in call.op.args])


RULES[STALE_ALIAS] = _stale_alias
RULES[LOCAL_PART] = RULES[SPREAD] = homogeneous
for _name in ("all_gather_into_tensor", "all_reduce", "all_to_all_single", "reduce_scatter_tensor", "wait_tensor"):
    RULES[f"_c10d_functional.{_name}"] = homogeneous  # what is sent, or a sum of it
