"""Generated Triton kernels, in Triton's interpreter, against the equations in fp64 and autograd's gradients of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnres_kernels.depth_attention.generated import tensors
from attnres_kernels.depth_attention.generated.launch_phase_1 import phase_1, phase_1_backward, source_logits
from attnres_kernels.depth_attention.generated.launch_phase_2 import Norm, phase_2, phase_2_backward
from attnres_kernels.errors import UnsupportedSourcesError

pytestmark = pytest.mark.interpreter

EPS = 1e-6
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

SWEEP = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.generate),
)
ROWS = st.sampled_from((0, 1, 2, 17))
WIDTHS = st.sampled_from((1, 2, 3, 8, 33, 64, 100))
SOURCES = st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 9, 33))
READS = st.integers(1, 6)
DTYPES = st.sampled_from((torch.float32, torch.bfloat16, torch.float16))


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN, and not by chance the right number."""
    honest = tensors.new
    monkeypatch.setattr(tensors, "new", lambda *args: honest(*args).fill_(float("nan")))


class Draw:
    """Random tensors of one dtype, reproducible by seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None, spread: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * spread).to(dtype or self.dtype)


def exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    largest = expected.abs().max().clamp_min(1e-3)
    error = float((actual.double() - expected).abs().max() / largest)
    assert error < tolerance, f"{what} is off by {error:.1e}"


# Phase 1


def equations(sources: list[Tensor], keys: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Equations 2 to 4 of the paper over completed blocks, and the log-sum-exp of the logits."""
    outputs, log_sums = [], []
    for key in keys:
        logits = torch.stack([(x * key).sum(-1) * torch.rsqrt(x.square().mean(-1) + EPS) for x in sources])
        weights = logits.softmax(0)
        outputs.append(sum(weight.unsqueeze(-1) * x for weight, x in zip(weights, sources, strict=True)))
        log_sums.append(logits.logsumexp(0))
    return outputs, log_sums


@SWEEP
@given(ROWS, WIDTHS, SOURCES, READS, DTYPES, st.integers(0, 99))
@example(17, 100, 33, 6, torch.float32, 0)
@example(2, 8, 13, 2, torch.bfloat16, 1)
@example(1, 1, 1, 1, torch.float32, 2)
def test_phase_1(rows: int, width: int, count: int, reads: int, dtype: torch.dtype, seed: int) -> None:
    draw = Draw(seed, dtype)
    sources = [draw(rows, width) for _ in range(count)]
    keys = draw(reads, width, dtype=torch.float32, spread=width**-0.5)
    logits = [source_logits(x, keys, EPS) for x in sources]
    outputs, log_sums = phase_1(sources, logits)
    expected, expected_sums = equations([x.double() for x in sources], keys.double())
    for s in range(reads):
        assert_close(outputs[s], expected[s], TOLERANCES[dtype], f"output {s}")
        assert_close(log_sums[s], expected_sums[s], 2e-5, f"log-sum-exp {s}")


@SWEEP
@given(ROWS, WIDTHS, SOURCES, READS, DTYPES, st.integers(0, 99))
@example(17, 100, 33, 6, torch.float32, 0)
@example(2, 8, 13, 2, torch.bfloat16, 1)
@example(17, 33, 1, 3, torch.float32, 2)
def test_phase_1_backward(rows: int, width: int, count: int, reads: int, dtype: torch.dtype, seed: int) -> None:
    draw = Draw(seed, dtype)
    sources = [draw(rows, width) for _ in range(count)]
    keys = draw(reads, width, dtype=torch.float32, spread=width**-0.5)
    # Some outputs, log-sum-exps and sources have no gradient from elsewhere; different ones for every seed.
    grads = [None if (seed + s) % 4 == 3 else draw(rows, width) for s in range(reads)]
    sum_grads = [None if (seed + s) % 3 == 2 else draw(rows, dtype=torch.float32) for s in range(reads)]
    carried = [None if (seed + i) % 3 == 1 else draw(rows, width) for i in range(count)]
    logits = [source_logits(x, keys, EPS) for x in sources]
    source_grads, key_grads = phase_1_backward(sources, logits, keys, grads, sum_grads, carried, EPS)

    leaves, key = [exact(x) for x in sources], exact(keys)
    outputs, log_sums = equations(leaves, key)
    pairs = [*zip(outputs, grads, strict=True), *zip(log_sums, sum_grads, strict=True)]
    pairs += zip(leaves, carried, strict=True)
    loss = sum((value * grad.double()).sum() for value, grad in pairs if grad is not None) + 0 * key.sum()
    loss = loss + 0 * sum(x.sum() for x in leaves)
    *expected, expected_keys = torch.autograd.grad(loss, [*leaves, key])
    for i in range(count):
        assert_close(source_grads[i], expected[i], TOLERANCES[dtype], f"gradient of source {i}")
    assert_close(key_grads, expected_keys, TOLERANCES[dtype], "gradient of the keys")


def test_one_source_gives_keys_no_gradient_at_all() -> None:
    """A softmax over one source is 1 whatever its logit is, so these are zeros and not small numbers."""
    draw = Draw(0, torch.float32)
    source, keys = draw(17, 33), draw(3, 33)
    grads = [draw(17, 33) for _ in range(3)]
    logits = [source_logits(source, keys, EPS)]
    _, key_grads = phase_1_backward([source], logits, keys, grads, [None] * 3, [None], EPS)
    assert torch.equal(key_grads, torch.zeros(3, 33))


# Phase 2


def equations_of_a_read(
    inter: Tensor, log_sum: Tensor, state: Tensor, key: Tensor, factor: float, norm: Norm | None
) -> tuple[Tensor, Tensor | None]:
    """The online softmax of Algorithm 1, and the norm behind."""
    logit = (state * key).sum(-1) * torch.rsqrt(state.square().mean(-1) + EPS)
    weight = (logit - torch.logaddexp(logit, log_sum)).exp().unsqueeze(-1)
    value = factor * ((1 - weight) * inter + weight * state)
    if norm is None:
        return value, None
    centered = value - value.mean(-1, keepdim=True) if norm.kind == "layer" else value
    out = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + norm.eps)
    out = out if norm.weight is None else out * norm.weight
    return value, out if norm.bias is None else out + norm.bias


NORMS = st.sampled_from(
    [None, *((kind, weight, bias) for kind in ("rms", "layer") for weight in (0, 1) for bias in (0, 1))]
)


@SWEEP
@given(ROWS, WIDTHS, DTYPES, NORMS, st.booleans(), st.booleans(), st.sampled_from((1.0, 3.0)), st.integers(0, 99))
@example(17, 100, torch.float32, ("layer", 1, 1), True, True, 3.0, 0)
@example(17, 33, torch.bfloat16, ("rms", 1, 0), True, False, 1.0, 1)
@example(2, 64, torch.float32, None, False, True, 1.0, 2)
def test_phase_2_and_its_backward(
    rows: int,
    width: int,
    dtype: torch.dtype,
    norm_spec: tuple[str, int, int] | None,
    adds: bool,
    returns_value: bool,
    factor: float,
    seed: int,
) -> None:
    draw = Draw(seed, dtype)
    inter, partial, log_sum = draw(rows, width), draw(rows, width), draw(rows, dtype=torch.float32)
    branch = draw(rows, width) if adds else None
    key = draw(width, dtype=torch.float32, spread=width**-0.5)
    norm = None
    if norm_spec is not None:
        kind, weight, bias = norm_spec
        # A LayerNorm of one feature divides zero by its eps; a larger one keeps the comparison well conditioned.
        eps = 1e-5 if width > 3 else 1e-1
        norm = Norm(kind, eps, draw(width) if weight else None, draw(width) if bias else None)  # type: ignore[arg-type]
    returns_value = returns_value or norm is None
    result = phase_2(inter, log_sum, partial, key, factor, EPS, branch, norm, returns_value)
    state = partial if branch is None else result.partial
    assert state is not None
    value_grad = draw(rows, width) if returns_value and seed % 3 else None
    normed_grad = draw(rows, width) if norm else None
    if value_grad is None and normed_grad is None:
        value_grad = draw(rows, width)
    later_grad = draw(rows, width) if seed % 2 else None
    found = phase_2_backward(
        inter, state, key, result.statistics, factor, value_grad, normed_grad, later_grad, adds, norm, returns_value
    )

    tolerance = TOLERANCES[dtype]
    if branch is not None:
        # The interpreter cuts fp32 off to bf16 where a GPU rounds.
        assert_close(state, partial.double() + branch.double(), tolerance, "partial sum")
    leaves = [exact(x) for x in (inter, log_sum, state, key)]
    vectors = [] if norm is None else [exact(x) for x in (norm.weight, norm.bias) if x is not None]
    exact_norm = norm
    if norm is not None:
        given_vectors = iter(vectors)
        exact_norm = replace(
            norm,
            weight=None if norm.weight is None else next(given_vectors),
            bias=None if norm.bias is None else next(given_vectors),
        )
    value, normed = equations_of_a_read(*leaves, factor, exact_norm)
    if returns_value:
        assert result.value is not None
        assert_close(result.value, value.detach(), tolerance, "value")
    pairs = [(value, value_grad), (normed, normed_grad), (leaves[2], later_grad)]
    loss = sum((x * grad.double()).sum() for x, grad in pairs if x is not None and grad is not None)
    loss = loss + 0 * sum(x.sum() for x in [*leaves, *vectors])
    expected = torch.autograd.grad(loss, [*leaves, *vectors])
    if norm is not None:
        assert result.normed is not None
        assert normed is not None
        assert_close(result.normed, normed.detach(), tolerance, "normed value")
    actual = [found.inter, found.log_sum, found.partial, found.key, found.norm_weight, found.norm_bias]
    names = ["phase 1's output", "log-sum-exp", "partial sum", "key", "norm weight", "norm bias"]
    kept = [(name, x) for name, x in zip(names, actual, strict=True) if x is not None]
    assert len(kept) == len(expected)
    for (name, x), wanted in zip(kept, expected, strict=True):
        assert_close(x, wanted, tolerance, f"gradient of {name}")


# Inputs in any layout


def test_sources_are_read_in_place_whatever_their_strides() -> None:
    draw = Draw(0, torch.float32)
    wide, transposed, plain = draw(2, 5, 2 * 33)[..., :33], draw(2, 33, 5).transpose(1, 2), draw(5, 33).expand(2, 5, 33)
    sources = [wide, transposed, plain]
    keys = draw(2, 33)
    outputs, _ = phase_1(sources, [source_logits(x, keys, EPS) for x in sources])
    expected, _ = equations([x.double() for x in sources], keys.double())
    for output, wanted in zip(outputs, expected, strict=True):
        assert_close(output.view(2, 5, 33), wanted, 1e-5, "output")


@pytest.mark.parametrize(
    ("source", "words"), [(torch.zeros(2, 3, dtype=torch.float64), "float64"), (torch.zeros(1, 16385), "16385 wide")]
)
def test_what_the_kernels_cannot_take_is_said(source: Tensor, words: str) -> None:
    with pytest.raises(UnsupportedSourcesError, match=words):
        source_logits(source, torch.zeros(1, source.shape[1]), EPS)
