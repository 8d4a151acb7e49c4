"""Every degree that the rule table claims is checked by executing the operator on scaled inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from attnres_passes.aten_trace import STALE_ALIAS, Op, Ref
from attnres_passes.degree_rules import RULES, SHAPE_ONLY, UNKNOWN, output_degrees
from tests.passes.helpers import WIDTH, Function, sample, traced

SCALES = (0.25, 3.0, 40.0)
TINY = 1e-14
U = UNKNOWN


@dataclass(frozen=True)
class Scaled:
    """A tensor argument that scales with the stream as c ** degree."""

    value: Tensor
    degree: Fraction | None


@dataclass(frozen=True)
class Case:
    """One call of an ATen overload, and the degrees that its outputs are expected to be given."""

    overload: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    degrees: tuple[Any, ...]

    @property
    def operator(self) -> Any:
        packet, overload = self.overload.split(".")
        return getattr(getattr(torch.ops.aten, packet), overload)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 31)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def s(*shape: int, k: int = 1) -> Scaled:
    """Random values of degree k."""
    return Scaled(random(*shape), Fraction(k))


def p(*shape: int, k: int = 1) -> Scaled:
    """Random positive values of degree k."""
    return Scaled(random(*shape).abs() + 0.1, Fraction(k))


def w(*shape: int) -> Scaled:
    """Random values that do not scale."""
    return Scaled(random(*shape) + 0.5, Fraction(0))


def ints(*values: Any) -> Scaled:
    return Scaled(torch.tensor(values), Fraction(0))


def mask(*shape: int) -> Scaled:
    return Scaled(random(*shape) > 0, Fraction(0))


def complex_s(*shape: int) -> Scaled:
    return Scaled(torch.view_as_complex(random(*shape, 2)), Fraction(1))


def unknown(*shape: int) -> Scaled:
    return Scaled(random(*shape), UNKNOWN)


def case(overload: str, *args: Any, to: Any = 1, **kwargs: Any) -> Case:
    """`to`: the degree of the only output, or a tuple of the degrees of all."""
    return Case(overload, args, kwargs, to if isinstance(to, tuple) else (to,))


def half(numerator: int) -> Fraction:
    return Fraction(numerator, 2)


LINEAR = [
    case("view.default", s(4, 6), [24]),
    case("_unsafe_view.default", s(4, 6), [24]),
    case("reshape.default", s(4, 6), [3, 8]),
    case("permute.default", s(4, 6), [1, 0]),
    case("transpose.int", s(4, 6), 0, 1),
    case("t.default", s(4, 6)),
    case("expand.default", s(1, 6), [4, 6]),
    case("slice.Tensor", s(4, 6), 0, 1, 3),
    case("select.int", s(4, 6), 0, 2),
    case("squeeze.dim", s(1, 6), 0),
    case("unsqueeze.default", s(4, 6), 0),
    case("split.Tensor", s(4, 6), 2, to=(1, 1)),
    case("split_with_sizes.default", s(4, 6), [1, 3], to=(1, 1)),
    case("unbind.int", s(2, 6), to=(1, 1)),
    case("clone.default", s(4, 6)),
    case("_to_copy.default", s(4, 6), dtype=torch.float32),
    case("alias.default", s(4, 6)),
    case("detach.default", s(4, 6)),
    case("contiguous.default", s(4, 6)),
    case("lift_fresh.default", s(4, 6)),
    case("neg.default", s(4, 6)),
    case("sum.dim_IntList", s(4, 6), [1]),
    case("sum.dim_IntList", s(4, 6, k=3), [1], to=3),
    case("mean.dim", s(4, 6), [-1], True),
    case("cumsum.default", s(4, 6), 0),
    case("flip.default", s(4, 6), [0]),
    case("roll.default", s(4, 6), [1], [0]),
    case("repeat.default", s(4, 6), [2, 1]),
    case("gather.default", s(2, 3), 1, ints([0, 2], [1, 1])),
    case("index.Tensor", s(4, 6), [ints(0, 2)]),
    case("index_select.default", s(4, 6), 0, ints(0, 2)),
    case("diagonal.default", s(4, 6)),
    case("tril.default", s(4, 6)),
    case("triu.default", s(4, 6)),
    case("unfold.default", s(4, 6), 1, 2, 2),
    case("as_strided.default", s(4, 6), [2, 2], [6, 1]),
    case("avg_pool1d.default", s(1, 2, 6), [2]),
    case("avg_pool2d.default", s(1, 2, 6, 6), [2, 2]),
    case("avg_pool3d.default", s(1, 2, 4, 4, 4), [2, 2, 2]),
    case("_adaptive_avg_pool2d.default", s(1, 2, 6, 6), [3, 3]),
    case("upsample_nearest2d.default", s(1, 2, 3, 3), [6, 6]),
    case("upsample_bilinear2d.default", s(1, 2, 3, 3), [6, 6], False),
    case("upsample_bicubic2d.default", s(1, 2, 3, 3), [6, 6], False),
    case("reflection_pad1d.default", s(1, 2, 6), [1, 1]),
    case("reflection_pad2d.default", s(1, 2, 4, 4), [1, 1, 1, 1]),
    case("view_as_real.default", complex_s(4, 6)),
    case("view_as_complex.default", s(4, 6, 2)),
    case("real.default", complex_s(4, 6)),
    case("imag.default", complex_s(4, 6)),
    case("_conj.default", complex_s(4, 6)),
    case("pixel_shuffle.default", s(1, 4, 3, 3), 2),
    case("pixel_unshuffle.default", s(1, 1, 4, 4), 2),
    case("copy.default", w(4, 6), s(4, 6)),
    case("fill.Tensor", w(4, 6), s()),
]
HOMOGENEOUS = [
    case("abs.default", s(4, 6)),
    case("relu.default", s(4, 6)),
    case("leaky_relu.default", s(4, 6), 0.1),
    case("amax.default", s(4, 6), [1]),
    case("amin.default", s(4, 6), [1]),
    case("linalg_vector_norm.default", s(4, 6), 2, [1]),
    case("linalg_vector_norm.default", s(4, 6), 1, [1]),
    case("std.correction", s(4, 6), [1]),
    case("max.dim", s(4, 6), 1, to=(1, 0)),
    case("min.dim", s(4, 6), 1, to=(1, 0)),
    case("max.default", s(4, 6)),
    case("max.other", s(4, 6), w(4, 6), to=U),
    case("topk.default", s(4, 6), 2, to=(1, 0)),
    case("sort.default", s(4, 6), to=(1, 0)),
    case("kthvalue.default", s(4, 6), 2, to=(1, 0)),
    case("mode.default", s(4, 6), to=(1, 0)),
    case("cummax.default", s(4, 6), 1, to=(1, 0)),
    case("cummin.default", s(4, 6), 1, to=(1, 0)),
    case("max_pool2d_with_indices.default", s(1, 2, 6, 6), [2, 2], to=(1, 0)),
    case("native_dropout.default", s(4, 6), 0.5, True, to=(1, 0)),
    case("maximum.default", s(4, 6), s(4, 6)),
    case("maximum.default", s(4, 6), w(4, 6), to=U),
    case("minimum.default", s(4, 6), p(4, 6)),
    case("lerp.Scalar", s(4, 6), p(4, 6), 0.3),
    case("lerp.Tensor", s(4, 6), p(4, 6), w(4, 6)),
    case("lerp.Tensor", s(4, 6), p(4, 6), s(4, 6), to=U),
]
INVARIANT = [
    case("argmax.default", s(4, 6), to=0),
    case("argmin.default", s(4, 6), to=0),
    case("argsort.default", s(4, 6), to=0),
    case("sign.default", s(4, 6), to=0),
    case("isinf.default", s(4, 6), to=0),
    case("isnan.default", s(4, 6), to=0),
    case("isfinite.default", s(4, 6), to=0),
    case("sign.default", unknown(4, 6), to=U),
    *(case(f"{name}.Scalar", s(4, 6), 0, to=0) for name in ["gt", "lt", "ge", "le", "eq", "ne"]),
    *(case(f"{name}.Scalar", s(4, 6), 0.5, to=U) for name in ["gt", "lt", "ge", "le", "eq", "ne"]),
    *(case(f"{name}.Tensor", s(4, 6), p(4, 6), to=0) for name in ["gt", "lt", "ge", "le", "eq", "ne"]),
    case("gt.Tensor", s(4, 6), w(4, 6), to=U),
]
PRODUCTS = [
    case("mul.Tensor", s(4, 6), s(4, 6), to=2),
    case("mul.Tensor", s(4, 6), w(6)),
    case("mul.Tensor", s(4, 6), 3.0),
    case("mul.Tensor", s(4, 6), unknown(4, 6), to=U),
    case("mm.default", s(4, 6), w(6, 3)),
    case("bmm.default", s(2, 4, 6), s(2, 6, 3), to=2),
    case("mv.default", s(4, 6), w(6)),
    case("dot.default", s(6), w(6)),
    case("outer.default", s(4), s(6), to=2),
    case("div.Tensor", s(4, 6), p(4, 6), to=0),
    case("div.Tensor", w(4, 6), p(4, 6), to=-1),
    case("div.Tensor_mode", s(4, 6), w(4, 6), rounding_mode="floor", to=U),
    case("true_divide.Tensor", s(4, 6), w(4, 6)),
    case("addmm.default", s(4, 3), s(4, 6), w(6, 3)),
    case("addmm.default", w(3), s(4, 6), w(6, 3), to=U),
    case("addmm.default", w(3), s(4, 6), w(6, 3), beta=0),
    case("baddbmm.default", s(2, 4, 3), s(2, 4, 6), w(2, 6, 3)),
    case("addmv.default", s(4), s(4, 6), w(6)),
    case("addbmm.default", s(4, 3), s(2, 4, 6), w(2, 6, 3)),
    case("addcmul.default", s(4, 6), s(4, 6), w(4, 6)),
    case("addcmul.default", w(4, 6), s(4, 6), w(4, 6), to=U),
    case("convolution.default", s(1, 2, 6), w(3, 2, 3), None, [1], [0], [1], False, [0], 1),
    case("convolution.default", s(1, 2, 6), w(3, 2, 3), w(3), [1], [0], [1], False, [0], 1, to=U),
]
SUMS = [
    case("add.Tensor", s(4, 6), s(4, 6)),
    case("add.Tensor", s(4, 6), w(6), to=U),
    case("add.Tensor", s(4, 6), unknown(4, 6), to=U),
    case("add.Tensor", p(4, 6, k=2), TINY, to=2),
    case("add.Scalar", p(4, 6, k=2), TINY, to=2),
    case("add.Tensor", p(4, 6, k=2), 0.5, to=U),
    case("sub.Tensor", s(4, 6), p(4, 6)),
    case("sub.Tensor", s(4, 6), w(4, 6), to=U),
    case("rsub.Tensor", s(4, 6), p(4, 6)),
    case("rsub.Scalar", s(4, 6), 1.0, to=U),
    case("cat.default", [s(4, 6), p(2, 6)]),
    case("cat.default", [s(4, 6), w(2, 6)], to=U),
    case("stack.default", [s(4, 6), p(4, 6)]),
    case("where.self", mask(4, 6), s(4, 6), p(4, 6)),
    case("where.self", mask(4, 6), s(4, 6), w(4, 6), to=U),
    case("where.self", unknown(4, 6), w(4, 6), w(4, 6), to=U),
    case("masked_fill.Scalar", s(4, 6), mask(4, 6), 0),
    case("masked_fill.Scalar", s(4, 6), mask(4, 6), float("-inf")),
    case("masked_fill.Scalar", s(4, 6), mask(4, 6), 1.0, to=U),
    case("constant_pad_nd.default", s(4, 6), [1, 1], 0),
    case("constant_pad_nd.default", s(4, 6), [1, 1], 2.0, to=U),
    case("clamp.default", p(4, 6), TINY),
    case("clamp.default", s(4, 6), 0.0),
    case("clamp.default", s(4, 6), -1.0, to=U),
    case("clamp.default", s(4, 6), None, 1.0, to=U),
    case("clamp.default", s(4, 6), 0.0, 6.0, to=U),
    case("clamp.default", s(4, 6), 0.5, to=U),
    case("clamp_min.default", p(4, 6), TINY),
    case("clamp_min.default", s(4, 6), 0.5, to=U),
    case("index_add.default", s(4, 6), 0, ints(0, 2), s(2, 6)),
    case("index_add.default", s(4, 6), 0, ints(0, 2), w(2, 6), to=U),
    case("index_copy.default", s(4, 6), 0, ints(0, 2), s(2, 6)),
    case("scatter.src", s(2, 3), 1, ints([0, 2], [1, 1]), s(2, 2)),
    case("scatter_add.default", s(2, 3), 1, ints([0, 2], [1, 1]), s(2, 2)),
    case("slice_scatter.default", s(4, 6), s(2, 6), 0, 0, 2),
    case("slice_scatter.default", w(4, 6), s(2, 6), 0, 0, 2, to=U),
    case("select_scatter.default", s(4, 6), s(6), 0, 1),
    case("index_put.default", s(4, 6), [ints(0, 2)], s(2, 6)),
    case("_index_put_impl.default", s(4, 6), [ints(0, 2)], s(2, 6)),
    case("masked_scatter.default", s(4, 6), mask(4, 6), s(4, 6)),
]
POWERS = [
    case("pow.Tensor_Scalar", s(4, 6), 2, to=2),
    case("pow.Tensor_Scalar", p(4, 6, k=2), -0.5, to=-1),
    case("pow.Tensor_Scalar", p(4, 6), 1.0 / 3.0, to=Fraction(1, 3)),
    case("pow.Tensor_Tensor", p(4, 6), w(4, 6), to=U),
    case("pow.Scalar", 2.0, s(4, 6), to=U),
    case("rsqrt.default", p(4, 6), to=half(-1)),
    case("sqrt.default", p(4, 6), to=half(1)),
    case("reciprocal.default", p(4, 6), to=-1),
    case("square.default", s(4, 6), to=2),
    case("var.correction", s(4, 6), [1], to=2),
    case("var_mean.correction", s(4, 6), [1], to=(2, 1)),
]
NORMS = [
    case("native_layer_norm.default", s(4, 6), [6], w(6), w(6), TINY, to=(0, 1, -1)),
    case("native_layer_norm.default", s(4, 6), [6], None, None, TINY, to=(0, 1, -1)),
    case("native_layer_norm.default", s(4, 6), [6], s(6), None, TINY, to=(U, 1, -1)),
    case("native_layer_norm.default", unknown(4, 6), [6], None, None, TINY, to=(U, U, U)),
    case("_fused_rms_norm.default", s(4, 6), [6], w(6), TINY, to=(0, -1)),
    case("rms_norm.default", s(4, 6), [6], w(6), TINY, to=0),
    case("rms_norm.default", s(4, 6), [6], s(6), TINY, to=U),
    case("native_group_norm.default", s(2, 4, 5), w(4), w(4), 2, 4, 5, 2, TINY, to=(0, 1, -1)),
    case("native_batch_norm.default", s(4, 6), w(6), w(6), None, None, True, 0.1, TINY, to=(0, 1, -1)),
    case("native_batch_norm.default", s(4, 6), w(6), w(6), w(6), p(6, k=0), False, 0.1, TINY, to=(U, U, U)),
    case("_native_batch_norm_legit.no_stats", s(4, 6), w(6), w(6), True, 0.1, TINY, to=(0, 1, -1)),
]
ATTENTION = [
    case("_scaled_dot_product_attention_math.default", w(1, 2, 4, 6), w(1, 2, 4, 6), s(1, 2, 4, 6), to=(1, 0)),
    case("_scaled_dot_product_attention_math.default", s(1, 2, 4, 6), w(1, 2, 4, 6), s(1, 2, 4, 6), to=(U, U)),
    case(
        "_scaled_dot_product_attention_math.default",
        s(1, 2, 4, 6),
        Scaled(random(1, 2, 4, 6), Fraction(-1)),
        w(1, 2, 4, 6),
        to=(0, 0),
    ),
]
CASES = [*LINEAR, *HOMOGENEOUS, *INVARIANT, *PRODUCTS, *SUMS, *POWERS, *NORMS, *ATTENTION]

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


def test_every_operator_of_the_table_has_a_case() -> None:
    covered = {f"aten.{case.overload.split('.')[0]}" for case in CASES}
    covered |= {f"aten.{name}" for name in STAND_INS} | {STALE_ALIAS}
    assert set(RULES) == covered


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
