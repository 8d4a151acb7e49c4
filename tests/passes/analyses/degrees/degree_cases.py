"""Calls of ATen operators, and the degrees that the rule table should give to their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from attnres_passes.analyses.degrees.degree import UNKNOWN

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
