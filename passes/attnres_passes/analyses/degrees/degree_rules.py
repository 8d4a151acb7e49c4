"""Rule table of the degree analysis: how each ATen operator scales when its inputs scale.

A value has degree k if it is multiplied by ``c**k`` when the residual stream is multiplied by c > 0. Values that do
not depend on the stream, and values that are invariant to its scale, have degree 0. What fits no rule is UNKNOWN.
Adding an operator is adding a line here; an operator without a line is taken to keep degree 0 and to lose any other.

Examples, with s a state (degree 1) and w a weight (degree 0)::

    s @ w              1        linear operations keep the degree
    s * s              2        products add
    rsqrt(mean(s*s))  -1        roots halve, reciprocals negate
    layer_norm(s)      0        normalisations take it away
    s + w              UNKNOWN  unequal degrees have no sum
    mean(s*s) + 1e-6   2        a tiny constant beside a value with a degree is an eps
    gelu(s)            UNKNOWN
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from torch.utils._pytree import tree_leaves

from attnres_passes.analyses.aten_trace import STALE_ALIAS, Op, Ref

UNKNOWN = None
"""The degree of a value that no power of c describes."""

Degree = Fraction | None
DegreeOf = Callable[[int], Degree]
Rule = Callable[[Op, DegreeOf], Sequence[Degree]]

ZERO = Fraction(0)
LARGEST_EPS = 1e-2
"""A constant up to this size, added to a value with a degree, is an eps and not a signal."""

RULES: dict[str, Rule] = {}
SHAPE_ONLY: frozenset[str] = frozenset(
    f"aten.{name}"
    for name in [
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "new_empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty_strided",
        "bernoulli_",
        "uniform_",
        "normal_",
        "exponential_",
        "random_",
        "fill_",
        "zero_",
    ]
)
"""Operators whose result does not depend on the values of their first tensor, only on its shape."""


def output_degrees(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """Degrees of the outputs of ``op``, one each; called only where some input has a degree other than 0."""
    if is_shape_only(op):
        return [ZERO] * len(op.outputs)
    rule = RULES.get(functional_name(op))
    return rule(op, degree_of) if rule else _all(op, UNKNOWN)


def is_shape_only(op: Op) -> bool:
    """Whether the values of the only tensor that ``op`` takes do not matter; a tensor beside it always does."""
    return op.name in SHAPE_ONLY and len(op.inputs) == 1


def functional_name(op: Op) -> str:
    """``aten.add`` for ``aten.add_`` and ``aten.add``: an operator changed in place scales as the plain one."""
    return op.name.rstrip("_")


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen operators in ``names``, separated by blanks."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            RULES[f"aten.{name}"] = function
        return function

    return register


def _all(op: Op, degree: Degree) -> list[Degree]:
    return [degree] * len(op.outputs)


def _degree(argument: Any, degree_of: DegreeOf) -> Degree:
    return degree_of(argument.value) if isinstance(argument, Ref) else ZERO


def _argument(op: Op, position: int, name: str, default: Any = None) -> Any:
    return op.args[position] if position < len(op.args) else op.kwargs.get(name, default)


def _same(degrees: Sequence[Degree]) -> Degree:
    """The degree of a sum or concatenation: that of every part, if they agree."""
    return degrees[0] if degrees and all(degree == degrees[0] for degree in degrees) else UNKNOWN


def _sum(left: Degree, right: Degree) -> Degree:
    return UNKNOWN if left is UNKNOWN or right is UNKNOWN else left + right


def _scaled(degree: Degree, factor: Fraction) -> Degree:
    return UNKNOWN if degree is UNKNOWN else degree * factor


def _first_if_others_invariant(op: Op, degree_of: DegreeOf) -> Degree:
    tensors = [leaf for leaf in tree_leaves((op.args, op.kwargs)) if isinstance(leaf, Ref)]
    others_invariant = all(degree_of(ref.value) == ZERO for ref in tensors[1:])
    return degree_of(tensors[0].value) if others_invariant else UNKNOWN


@rule(
    "view _unsafe_view reshape permute transpose t expand slice select squeeze unsqueeze split split_with_sizes "
    "unbind clone alias detach contiguous lift_fresh neg sum mean cumsum flip roll repeat gather index "
    "index_select diagonal tril triu unfold as_strided avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d reflection_pad1d reflection_pad2d abs relu leaky_relu "
    "amax amin std view_as_real view_as_complex real imag _conj pixel_shuffle pixel_unshuffle"
)
def homogeneous(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """f(c x) = c f(x) for c > 0: the degree of the first tensor passes through."""
    return _all(op, _first_if_others_invariant(op, degree_of))


@rule("_to_copy")
def cast(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """Rounding to integers is felt at one scale and not at another."""
    dtype = op.kwargs.get("dtype")
    is_rounding = dtype is not None and not dtype.is_floating_point and not dtype.is_complex
    return _all(op, UNKNOWN if is_rounding else _first_if_others_invariant(op, degree_of))


@rule("linalg_vector_norm")
def vector_norm(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """All norms but the one of order 0, which counts."""
    return _all(op, UNKNOWN if _argument(op, 1, "ord", 2) == 0 else _first_if_others_invariant(op, degree_of))


@rule("max min topk sort max_pool2d_with_indices native_dropout kthvalue mode cummax cummin")
def homogeneous_with_indices(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """The first output scales with the input; positions and masks beside it do not change."""
    tensors = [leaf for leaf in tree_leaves(op.args) if isinstance(leaf, Ref)]
    degrees = [degree_of(ref.value) for ref in tensors]
    return [_same(degrees), *[ZERO if degrees[0] is not UNKNOWN else UNKNOWN] * (len(op.outputs) - 1)]


@rule("argmax argmin argsort sign isinf isnan isfinite")
def invariant_if_known(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _all(op, ZERO if _degree(op.args[0], degree_of) is not UNKNOWN else UNKNOWN)


@rule("gt lt ge le eq ne")
def comparison(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """Comparing values of one degree, or a value against 0, does not depend on c."""
    left, right = op.args[0], op.args[1]
    if not isinstance(right, Ref):
        known = _degree(left, degree_of) is not UNKNOWN
        return _all(op, ZERO if known and right == 0 else UNKNOWN)
    same = _same([_degree(left, degree_of), _degree(right, degree_of)])
    return _all(op, ZERO if same is not UNKNOWN else UNKNOWN)


@rule("mul mm bmm mv dot _grouped_mm outer")
def product(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _all(op, _sum(_degree(op.args[0], degree_of), _degree(op.args[1], degree_of)))


@rule("div true_divide")
def quotient(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    if op.kwargs.get("rounding_mode") is not None:
        return _all(op, UNKNOWN)
    return _all(op, _sum(_degree(op.args[0], degree_of), _scaled(_degree(op.args[1], degree_of), Fraction(-1))))


@rule("addmm baddbmm addmv addbmm addcmul")
def sum_with_product(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    added, left, right = (_degree(argument, degree_of) for argument in op.args[:3])
    if op.kwargs.get("beta", 1) == 0:
        return _all(op, _sum(left, right))
    return _all(op, _same([added, _sum(left, right)]))


@rule("convolution")
def convolution(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    degree = _sum(_degree(op.args[0], degree_of), _degree(op.args[1], degree_of))
    bias = op.args[2]
    return _all(op, degree if bias is None else _same([degree, _degree(bias, degree_of)]))


@rule("add sub rsub")
def addition(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    left, right = op.args[0], op.args[1]
    for value, constant in ((left, right), (right, left)):
        if not isinstance(constant, Ref) and isinstance(value, Ref):
            is_eps = isinstance(constant, (int, float)) and abs(constant) <= LARGEST_EPS
            return _all(op, _degree(value, degree_of) if is_eps else UNKNOWN)
    return _all(op, _same([_degree(left, degree_of), _degree(right, degree_of)]))


@rule("maximum minimum lerp")
def like_a_sum(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    invariant_weight = len(op.args) < 3 or _degree(op.args[2], degree_of) == ZERO
    same = _same([_degree(op.args[0], degree_of), _degree(op.args[1], degree_of)])
    return _all(op, same if invariant_weight else UNKNOWN)


@rule("clamp clamp_min")
def lower_bound(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """A tiny lower bound guards a division, as an eps does; any other bound is a signal."""
    low, high = _argument(op, 1, "min"), _argument(op, 2, "max")
    is_guard = high is None and isinstance(low, (int, float)) and 0 <= low <= LARGEST_EPS
    return _all(op, _degree(op.args[0], degree_of) if is_guard else UNKNOWN)


@rule("where")
def selection(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    if len(op.args) < 3 or _degree(op.args[0], degree_of) != ZERO:
        return _all(op, UNKNOWN)
    return _all(op, _same([_degree(op.args[1], degree_of), _degree(op.args[2], degree_of)]))


@rule("masked_fill constant_pad_nd")
def fill_with_constant(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """Zeros and infinities are the same at every scale."""
    value = _argument(op, 2, "value", 0)
    scale_free = isinstance(value, (int, float)) and (value == 0 or math.isinf(value))
    return _all(op, _first_if_others_invariant(op, degree_of) if scale_free else UNKNOWN)


@rule("cat stack")
def concatenation(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _all(op, _same([_degree(part, degree_of) for part in op.args[0]]))


@rule("copy fill")
def overwrite(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _all(op, _degree(op.args[1], degree_of))


@rule("index_add index_copy scatter scatter_add slice_scatter select_scatter index_put _index_put_impl masked_scatter")
def write_into(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """Target and values must scale alike; positions must not scale at all."""
    target, *positions, values = (
        degree_of(leaf.value) for leaf in tree_leaves((op.args, op.kwargs)) if isinstance(leaf, Ref)
    )
    return _all(op, _same([target, values]) if all(degree == ZERO for degree in positions) else UNKNOWN)


@rule("pow")
def power(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    base, exponent = op.args[0], op.args[1]
    if isinstance(exponent, Ref) or not isinstance(base, Ref):
        return _all(op, UNKNOWN)
    return _all(op, _scaled(_degree(base, degree_of), Fraction(exponent).limit_denominator(64)))


def _power_rule(exponent: Fraction) -> Rule:
    return lambda op, degree_of: _all(op, _scaled(_degree(op.args[0], degree_of), exponent))


RULES["aten.rsqrt"] = _power_rule(Fraction(-1, 2))
RULES["aten.sqrt"] = _power_rule(Fraction(1, 2))
RULES["aten.reciprocal"] = _power_rule(Fraction(-1))
RULES["aten.square"] = _power_rule(Fraction(2))
RULES["aten.var"] = _power_rule(Fraction(2))


@rule("var_mean")
def variance_and_mean(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    degree = _degree(op.args[0], degree_of)
    return [_scaled(degree, Fraction(2)), degree]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_fused_attention_overrideable"
)
def attention(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """Softmax needs logits of degree 0; then the output scales as the values do."""
    query, key, value = (_degree(argument, degree_of) for argument in op.args[:3])
    others = [leaf for leaf in tree_leaves((op.args[3:], op.kwargs)) if isinstance(leaf, Ref)]
    invariant = _sum(query, key) == ZERO and all(degree_of(other.value) == ZERO for other in others)
    return [value if invariant else UNKNOWN, *[ZERO if invariant else UNKNOWN] * (len(op.outputs) - 1)]


def _normalized(
    op: Op, degree_of: DegreeOf, affine: Sequence[Any], statistics: Sequence[int], eps: float | None
) -> list[Degree]:
    """Output of degree 0 when weight and bias are, and the statistics beside it with the given powers."""
    degree = _degree(op.args[0], degree_of)
    known = degree is not UNKNOWN and all(_degree(argument, degree_of) == ZERO for argument in affine)
    if eps is not None and eps > LARGEST_EPS:  # it is felt beside the variance
        return _all(op, UNKNOWN)
    degrees = [ZERO if known else UNKNOWN, *(_scaled(degree, Fraction(power)) for power in statistics)]
    # What an operator changes in place, the running statistics of a batch norm, comes first among its outputs.
    written = len(op.outputs) - len(op.target._schema.returns)
    degrees = [*[UNKNOWN] * written, *degrees]
    return degrees[: len(op.outputs)] + [UNKNOWN] * (len(op.outputs) - len(degrees))


@rule("native_layer_norm")
def layer_norm(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _normalized(op, degree_of, op.args[2:4], (1, -1), _argument(op, 4, "eps"))


@rule("_fused_rms_norm rms_norm")
def rms_norm(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _normalized(op, degree_of, op.args[2:3], (-1,), _argument(op, 3, "eps"))


@rule("native_group_norm")
def group_norm(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _normalized(op, degree_of, op.args[1:3], (1, -1), op.args[-1])


@rule("native_batch_norm _native_batch_norm_legit cudnn_batch_norm")
def batch_norm(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    """With batch statistics it is a norm; with running statistics it is an affine map."""
    has_running_statistics = len(op.args) > 7 or functional_name(op) != "aten._native_batch_norm_legit"
    training = op.args[5] if has_running_statistics else op.args[3]
    eps = next((argument for argument in reversed(op.args) if isinstance(argument, float)), None)
    return _normalized(op, degree_of, op.args[1:3], (1, -1), eps) if training else _all(op, UNKNOWN)


@rule("_batch_norm_with_update")
def batch_norm_with_update(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _normalized(op, degree_of, op.args[1:3], (1, -1), op.args[-1])


def _stale_alias(op: Op, degree_of: DegreeOf) -> Sequence[Degree]:
    return _all(op, _same([_degree(argument, degree_of) for argument in op.args]))


RULES[STALE_ALIAS] = _stale_alias
