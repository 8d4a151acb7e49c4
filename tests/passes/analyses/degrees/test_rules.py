"""Every degree that the rule table claims is checked by executing the operator on scaled inputs."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from attnres_passes.analyses.aten_trace import LOCAL_PART, SPREAD, STALE_ALIAS, Op, Ref
from attnres_passes.analyses.degrees.degree import RULES, SHAPE_ONLY, UNKNOWN
from attnres_passes.analyses.degrees.homogeneous import homogeneous
from attnres_passes.analyses.degrees.rules import output_degrees
from tests.passes.analyses.degrees.degree_cases import CASES, TINY, Case, Scaled, U, case, random, s, unknown, w
from tests.passes.helpers import WIDTH, Function, sample, traced

SCALES = (0.25, 3.0, 40.0)

# Operators that no CPU runs, and the operator of the same rule that stands for them, with the arguments that the
# rule looks at. Their schemas are compared instead.
STAND_INS = {
    "_scaled_dot_product_flash_attention_for_cpu": ("_scaled_dot_product_attention_math", "query key value"),
    "_scaled_dot_product_flash_attention": ("_scaled_dot_product_attention_math", "query key value"),
    "_scaled_dot_product_efficient_attention": ("_scaled_dot_product_attention_math", "query key value"),
    "_scaled_dot_product_cudnn_attention": ("_scaled_dot_product_attention_math", "query key value"),
    "_scaled_dot_product_fused_attention_overrideable": (
        "_scaled_dot_product_attention_math",
        "query key value",
    ),
    "cudnn_batch_norm": ("native_batch_norm", "input weight bias running_mean running_var training"),
    "_grouped_mm": ("mm", "self mat2"),
    "_batch_norm_with_update": ("native_batch_norm", "input weight bias running_mean running_var"),
}


def recorded(case: Case) -> tuple[Op, list[Fraction | None]]:
    """The operation as a trace records it, and the degree of each of its tensor arguments."""
    degrees: list[Fraction | None] = []

    def number(argument: Scaled) -> Ref:
        degrees.append(argument.degree)
        return Ref(len(degrees) - 1)

    args, kwargs = tree_map_only(Scaled, number, (case.args, case.kwargs))
    inputs = tuple(range(len(degrees)))
    outputs = tuple(range(100, 100 + len(case.degrees)))
    return Op(0, case.operator, args, kwargs, inputs, outputs, 0), degrees


def claimed(case: Case) -> Sequence[Fraction | None]:
    op, degrees = recorded(case)
    return output_degrees(op, lambda value: degrees[value])


def executed(case: Case, scale: float) -> list[Tensor]:
    def scaled(argument: Scaled) -> Tensor:
        return argument.value if not argument.degree else argument.value * scale ** float(argument.degree)

    args, kwargs = tree_map_only(Scaled, scaled, (case.args, case.kwargs))
    torch.manual_seed(0)
    return tree_leaves(case.operator(*args, **kwargs))


def tolerance(case: Case) -> float:
    return 1e-6 if torch.float32 in case.kwargs.values() else 1e-9


def name_of(case: Case) -> str:
    return f"{case.overload}->{','.join('?' if degree is U else str(degree) for degree in case.degrees)}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_claimed_degrees_are_the_expected_ones(case: Case) -> None:
    assert list(claimed(case)) == list(case.degrees)


@pytest.mark.parametrize("case", [case for case in CASES if set(case.degrees) != {U}], ids=name_of)
def test_operator_scales_as_claimed(case: Case) -> None:
    """f(c x) == c ** k f(x) for every output that is given a degree k."""
    plain = executed(case, 1.0)
    for scale in SCALES:
        for degree, before, after in zip(claimed(case), plain, executed(case, scale), strict=True):
            if degree is not U:
                factor = scale ** float(degree)
                expected = before * factor if degree else before
                torch.testing.assert_close(after, expected, rtol=tolerance(case), atol=1e-9 * factor)


COLLECTIVES = ("all_gather_into_tensor", "all_reduce", "all_to_all_single", "reduce_scatter_tensor", "wait_tensor")
BETWEEN_RANKS = {LOCAL_PART, SPREAD, *(f"_c10d_functional.{name}" for name in COLLECTIVES)}


def test_every_operator_of_the_table_has_a_case() -> None:
    covered = {f"aten.{case.overload.split('.')[0]}" for case in CASES}
    covered |= {f"aten.{name}" for name in STAND_INS} | {STALE_ALIAS}
    assert set(RULES) == covered | BETWEEN_RANKS


@pytest.mark.parametrize("name", sorted(BETWEEN_RANKS))
def test_what_goes_between_ranks_keeps_its_degree(name: str) -> None:
    """A part, a whole, or a sum of what each rank has; ranks run them in tests/end_to_end/borders."""
    assert RULES[name] is homogeneous


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_in_has_the_same_leading_arguments(name: str) -> None:
    """The rule reads arguments by position, so the positions have to mean the same in both schemas."""
    stand_in, leading = STAND_INS[name]
    overload = getattr(torch.ops.aten, name).default
    given = [argument.name for argument in overload._schema.arguments]
    assert given[: len(leading.split())] == leading.split()
    if name != "_batch_norm_with_update":  # always in training, so its rule asks for no flag
        assert RULES[f"aten.{stand_in}"] is RULES[f"aten.{name}"]


def test_batch_norm_that_updates_its_statistics_gives_degree_0() -> None:
    """A trace lists what an operator changes in place among its outputs; the norm's own output is another one."""

    def model(self: Function, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return torch.ops.aten._native_batch_norm_legit(x, None, None, mean, variance, True, 0.1, TINY)[0]

    trace = traced(model, sample(4, WIDTH), sample(WIDTH), sample(WIDTH).abs())
    (op,) = trace.ops
    degrees = output_degrees(op, lambda value: Fraction(value == op.inputs[0]))
    (normed,) = trace.graph_outputs
    assert dict(zip(op.outputs, degrees, strict=True))[normed] == 0


@pytest.mark.parametrize(("degrees", "expected"), [((1, 1), 1), ((1, 0), U), ((0, 1), U), ((2, 2), 2), ((1, None), U)])
def test_stale_alias_has_a_degree_if_both_tensors_agree(degrees: tuple[Any, Any], expected: Any) -> None:
    op = Op(0, STALE_ALIAS, (Ref(0), Ref(1)), {}, (0, 1), (2,), 0)
    assert output_degrees(op, lambda value: degrees[value]) == [expected]


def test_operator_without_a_rule_loses_the_degree() -> None:
    gelu = case("gelu.default", s(4, 6), to=U)
    softmax = case("_softmax.default", s(4, 6), 1, False, to=U)
    sigmoid = case("sigmoid.default", s(4, 6), to=U)
    for lost in (gelu, softmax, sigmoid):
        assert list(claimed(lost)) == [U]


def test_in_place_operator_scales_as_the_plain_one() -> None:
    assert list(claimed(case("add_.Tensor", s(4, 6), s(4, 6)))) == [1]
    assert list(claimed(case("mul_.Tensor", s(4, 6), w(4, 6)))) == [1]


@pytest.mark.parametrize("name", sorted(SHAPE_ONLY))
def test_shape_only_operator_ignores_the_values(name: str) -> None:
    op = Op(0, name, (Ref(0),), {}, (0,), (1,), 0)
    assert output_degrees(op, lambda value: Fraction(1)) == [0]


def test_filling_with_a_value_of_the_stream_is_not_invariant() -> None:
    """Only the values of the tensor that is filled do not matter."""
    assert list(claimed(case("fill_.Tensor", w(4, 6), s()))) == [1]
    assert list(claimed(case("fill_.Scalar", s(4, 6), 0.5, to=0))) == [0]


# What the table must not claim, although an operator's usual arguments scale.


def test_attention_with_a_mask_of_the_stream_is_unknown() -> None:
    """The mask is added to the logits, so a mask that scales with the stream changes the weights."""
    biased = case("_scaled_dot_product_attention_math.default", *[w(1, 2, 4, 6)] * 3, s(4, 4), to=(U, U))
    assert not torch.allclose(executed(biased, 1.0)[0], executed(biased, 3.0)[0])
    assert list(claimed(biased)) == [U, U]


@pytest.mark.parametrize(
    "norm",
    [
        case("native_layer_norm.default", s(4, 6), [6], w(6), w(6), 10.0, to=(U, 1, U)),
        case("_fused_rms_norm.default", s(4, 6), [6], w(6), 10.0, to=(U, U)),
        case("native_group_norm.default", s(2, 4, 5), w(4), w(4), 2, 4, 5, 2, 10.0, to=(U, 1, U)),
        case("native_batch_norm.default", s(4, 6), w(6), w(6), None, None, True, 0.1, 10.0, to=(U, 1, U)),
    ],
    ids=lambda norm: norm.overload,
)
def test_norm_with_a_large_eps_is_unknown(norm: Case) -> None:
    """An eps that is felt at the scale of the signal makes a norm an ordinary function of it."""
    assert not torch.allclose(executed(norm, 1.0)[0], executed(norm, 3.0)[0])
    assert claimed(norm)[0] is U


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_rounding_to_integers_is_unknown(dtype: torch.dtype) -> None:
    rounded = case("_to_copy.default", s(4, 6), dtype=dtype, to=U)
    assert claimed(rounded)[0] is U


def test_counting_norm_is_not_of_degree_one() -> None:
    counted = case("linalg_vector_norm.default", s(4, 6), 0, [1], to=0)
    torch.testing.assert_close(executed(counted, 1.0), executed(counted, 3.0))
    assert claimed(counted)[0] in (U, 0)


@pytest.mark.parametrize(
    "written",
    [
        case("masked_scatter.default", w(4, 6), Scaled(random(4, 6), UNKNOWN), w(4, 6), to=U),
        case("index_put.default", w(4, 6), [unknown(2)], w(2, 6), to=U),
    ],
    ids=lambda written: written.overload,
)
def test_writing_at_positions_of_unknown_degree_is_unknown(written: Case) -> None:
    assert claimed(written)[0] is U
