"""Rules of sums, products, powers and what is made of them, such as variances."""

from __future__ import annotations

from fractions import Fraction

from attnres_passes.analyses.aten_trace import Ref
from attnres_passes.analyses.degrees.degree import (
    LARGEST_EPS,
    RULES,
    UNKNOWN,
    ZERO,
    Call,
    Degree,
    Rule,
    common,
    of_power,
    of_product,
    rule,
)


@rule("add sub rsub")
def addition(call: Call) -> Degree:
    left, right = call.op.args[:2]
    for value, constant in ((left, right), (right, left)):
        if not isinstance(constant, Ref) and isinstance(value, Ref):
            is_eps = isinstance(constant, (int, float)) and abs(constant) <= LARGEST_EPS
            return call.of(value) if is_eps else UNKNOWN
    return common([call.degree(0), call.degree(1)])


@rule("maximum minimum lerp")
def like_a_sum(call: Call) -> Degree:
    is_weight_invariant = len(call.op.args) < 3 or call.degree(2) == ZERO
    return common([call.degree(0), call.degree(1)]) if is_weight_invariant else UNKNOWN


@rule("mul mm bmm mv dot _grouped_mm outer")
def product(call: Call) -> Degree:
    return of_product(call.degree(0), call.degree(1))


@rule("div true_divide")
def quotient(call: Call) -> Degree:
    if call.op.kwargs.get("rounding_mode") is not None:
        return UNKNOWN
    return of_product(call.degree(0), of_power(call.degree(1), Fraction(-1)))


@rule("addmm baddbmm addmv addbmm addcmul")
def sum_with_product(call: Call) -> Degree:
    multiplied = of_product(call.degree(1), call.degree(2))
    return multiplied if call.op.kwargs.get("beta", 1) == 0 else common([call.degree(0), multiplied])


@rule("convolution")
def convolution(call: Call) -> Degree:
    multiplied = of_product(call.degree(0), call.degree(1))
    return multiplied if call.op.args[2] is None else common([multiplied, call.degree(2)])


@rule("pow")
def power(call: Call) -> Degree:
    base, exponent = call.op.args[:2]
    if isinstance(exponent, Ref) or not isinstance(base, Ref):
        return UNKNOWN
    return of_power(call.of(base), Fraction(exponent).limit_denominator(64))


def _power_rule(exponent: Fraction) -> Rule:
    return lambda call: of_power(call.degree(), exponent)


RULES["aten.rsqrt"] = _power_rule(Fraction(-1, 2))
RULES["aten.sqrt"] = _power_rule(Fraction(1, 2))
RULES["aten.reciprocal"] = _power_rule(Fraction(-1))
RULES["aten.square"] = _power_rule(Fraction(2))
RULES["aten.var"] = _power_rule(Fraction(2))


@rule("var_mean")
def variance_and_mean(call: Call) -> list[Degree]:
    return [of_power(call.degree(), Fraction(2)), call.degree()]
