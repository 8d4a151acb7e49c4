"""The operator against an independent fp64 formulation: forward, every gradient, errors, contracts."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attnres_kernels.definition import cost
from attnres_kernels.definition.naive import depth_attention, depth_weights, key_vector
from attnres_kernels.errors import UnsupportedSourcesError
from attnres_kernels.operators.definition import register_flop_formulas

EPS = 1e-6
depth_attention_op = torch.ops.attnres.depth_attention
register_flop_formulas()
# Rounding of one downcast: fp16 keeps 11 significant bits and bf16 8; fp32 loses some in sums over d and n.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def reference(sources: Sequence[Tensor], key: Tensor, scale: str) -> Tensor:
    """Equations 1 to 3 in fp64 on stacked sources, with the norm written as a division."""
    values = torch.stack([x.double() for x in sources])
    keys = values / torch.sqrt((values * values).sum(-1, keepdim=True) / values.shape[-1] + EPS)
    weights = torch.softmax(torch.einsum("d,n...d->n...", key.double(), keys), 0)
    out = torch.einsum("n...,n...d->...d", weights, values)
    return out * len(sources) if scale == "sum" else out


def make(shape: Sequence[int], count: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    size = expected.abs().max().clamp(min=1.0) if expected.numel() else torch.tensor(1.0)
    torch.testing.assert_close(actual.double() / size, expected.double() / size, rtol=0.0, atol=TOLERANCE[dtype])


def check_everything(shape: Sequence[int], count: int, dtype: torch.dtype, scale: str, seed: int) -> None:
    *sources, grad = make(shape, count + 1, dtype, seed)
    key = make(shape[-1:], 1, torch.float64 if dtype == torch.float64 else torch.float32, seed + 1)[0]
    given = [x.clone().requires_grad_() for x in sources], key.clone().requires_grad_()
    wanted = [x.double().requires_grad_() for x in sources], key.double().requires_grad_()
    out = depth_attention_op(given[0], given[1], EPS, scale)
    expected = reference(wanted[0], wanted[1], scale)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_close(out, expected, dtype)
    grads = torch.autograd.grad(out, [*given[0], given[1]], grad)
    expected_grads = torch.autograd.grad(expected, [*wanted[0], wanted[1]], grad.double())
    for actual, wish in zip(grads, expected_grads, strict=True):
        assert_close(actual, wish, dtype)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=2),
    width=st.integers(1, 17),
    count=st.integers(1, 7),
    dtype=st.sampled_from(list(TOLERANCE)),
    scale=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 1000),
)
def test_forward_and_every_gradient(
    shape: list[int], width: int, count: int, dtype: torch.dtype, scale: str, seed: int
) -> None:
    if dtype in (torch.float16, torch.bfloat16) and width < 3:
        width = 3  # a norm over one or two rounded values has gradients that are pure cancellation
    check_everything([*shape, width], count, dtype, scale, seed)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((0, 8), 3),  # no tokens
        ((7, 1), 4),  # width one
        ((2, 3, 33), 1),  # one source
        ((1, 129), 24),  # as many sources as Full AttnRes has
    ],
)
@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_odd_shapes(shape: tuple[int, ...], count: int, scale: str) -> None:
    check_everything(shape, count, torch.float64, scale, 3)
    check_everything(shape, count, torch.float32, scale, 3)


def test_one_source_is_returned_and_gives_the_key_no_gradient() -> None:
    source = make((4, 6), 1, torch.float32)[0].requires_grad_()
    key = make((6,), 1, torch.float32, 5)[0].requires_grad_()
    out = depth_attention_op([source], key, EPS, "sum")
    assert torch.equal(out, source)
    assert out.data_ptr() != source.data_ptr()
    grad_source, grad_key = torch.autograd.grad(out.square().sum(), [source, key])
    assert torch.equal(grad_source, 2 * source)
    assert torch.equal(grad_key, torch.zeros(6))


def test_zero_queries_give_mean_and_sum() -> None:
    sources = make((3, 5), 4, torch.float64)
    zero = torch.zeros(5, dtype=torch.float64)
    total = torch.stack(sources).sum(0)
    torch.testing.assert_close(depth_attention_op(sources, zero, EPS, "mean"), total / 4)
    torch.testing.assert_close(depth_attention_op(sources, zero, EPS, "sum"), total)
    torch.testing.assert_close(depth_weights(sources, zero, EPS), torch.full((3, 4), 0.25).double())


def test_non_contiguous_sources() -> None:
    sources = [x.transpose(0, 1) for x in make((4, 3, 6), 3, torch.float32)]
    key = make((6,), 1, torch.float32, 1)[0]
    out = depth_attention_op(sources, key, EPS, "mean")
    assert out.is_contiguous()
    assert_close(out, reference(sources, key, "mean"), torch.float32)


@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_operator_contract(scale: str) -> None:
    sources = [x.requires_grad_() for x in make((2, 3, 4), 3, torch.float64)]
    key = make((4,), 1, torch.float64, 1)[0].requires_grad_()
    torch.library.opcheck(torch.ops.attnres.depth_attention, (sources, key, EPS, scale))
    assert torch.autograd.gradcheck(lambda k, *s: depth_attention_op(list(s), k, EPS, scale), (key, *sources))


def test_autocast_does_not_round_the_statistics() -> None:
    sources = [x.requires_grad_() for x in make((8, 64), 3, torch.float32)]
    key = make((64,), 1, torch.float32, 1)[0].requires_grad_()
    plain = depth_attention_op(sources, key, EPS, "mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = depth_attention_op(sources, key, EPS, "mean")
        cast_grads = torch.autograd.grad(cast.sum(), [*sources, key])
    assert torch.equal(plain, cast)
    for a, b in zip(torch.autograd.grad(plain.sum(), [*sources, key]), cast_grads, strict=True):
        assert torch.equal(a, b)


def test_key_vector_multiplies_in_fp32() -> None:
    query, weight = make((9,), 2, torch.bfloat16)
    assert torch.equal(key_vector(query, weight), query.float() * weight.float())
    assert key_vector(query.double(), weight.double()).dtype == torch.float64


def test_flops_are_counted() -> None:
    sources, key = make((2, 3, 4), 5, torch.float32), torch.zeros(4)
    with FlopCounterMode(display=False) as counter:
        depth_attention_op(sources, key, EPS, "mean")
    assert counter.get_total_flops() == 6 * 5 * 24


def _bad_inputs() -> dict[str, tuple[list[Tensor], Tensor, str]]:
    good, key = torch.zeros(2, 4), torch.zeros(4)
    return {
        "no sources": ([], key, "pass at least the root of the stream."),
        "shapes": ([good, torch.zeros(3, 4)], key, "expand or reshape the sources to one shape."),
        "dtypes": ([good, good.double()], key, "convert all sources to one dtype."),
        "integers": ([good.long()], key, "convert them to a floating-point dtype."),
        "scalars": ([torch.tensor(1.0)], key, "give them a last dimension d."),
        "integer key": ([good], key.long(), "convert it to a floating-point dtype."),
        "width": ([good], torch.zeros(5), "pass a query and key-norm weight of shape [4]."),
    }


@pytest.mark.parametrize("case", list(_bad_inputs()))
def test_errors_say_what_to_do(case: str) -> None:
    sources, key, advice = _bad_inputs()[case]
    for function in (depth_attention, depth_attention_op):
        with pytest.raises(UnsupportedSourcesError) as error:
            function(sources, key, EPS, "mean")
        assert error.value.message.endswith(advice)


def test_unknown_scale() -> None:
    with pytest.raises(UnsupportedSourcesError, match=r"pass one of 'mean', 'sum'\.\n"):
        depth_attention_op([torch.zeros(2, 4)], torch.zeros(4), EPS, "max")


def test_costs_of_the_papers_table() -> None:
    assert cost.paper_standard_residual() == 3
    assert round(cost.paper_mhc(4, 7168)) == 34
    assert cost.paper_full(16, 8) == 24
    assert cost.paper_block(16, 8) == 5.5


def test_costs_agree_with_each_other() -> None:
    assert cost.two_phase(6, 3) == 8
    assert cost.direct(2) == 6
    assert cost.standard_residual() == 4
    for n, reads in ((1, 1), (3, 3), (8, 4)):
        assert cost.group(n, [n] * reads) == pytest.approx(reads * cost.two_phase(n, reads))
        assert cost.group(0, [n] * reads) == reads * cost.direct(n)
    assert cost.group(4, [4, 5, 6, 7]) == 4 + 4 * 6 + 0 + 1 + 2 + 3, "one of Full AttnRes: 4 shared, others in place"
    assert all(cost.naive(n) > max(cost.direct(n), cost.two_phase(n, 3)) for n in range(1, 10))
