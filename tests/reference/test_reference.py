"""The hand-written models against transformers, against hand calculations, and by the zero-query identity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.reference.block_attnres import BlockResiduals, mix
from tests.reference.gpt2 import gpt2_logits
from tests.reference.llama import llama_logits, widen_norms

LAYERS, WIDTH, VOCABULARY, LENGTH = 3, 32, 50, 11
WRITES = 2 * LAYERS

# fp32 and fp64 carry 24 and 53 bits; a few hundred roundings on small models stay well inside these.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        n_layer=LAYERS,
        n_embd=WIDTH,
        n_head=4,
        vocab_size=VOCABULARY,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config)


MODELS = [pytest.param(gpt2, gpt2_logits, id="gpt2"), pytest.param(llama, llama_logits, id="llama")]
DTYPES = [torch.float32, torch.float64]
Logits = Callable[..., Tensor]


def make(build: Callable[[], PreTrainedModel], dtype: torch.dtype) -> tuple[PreTrainedModel, Tensor]:
    """A model with weights far from their tiny initial values, without dropout, and token ids [2, T]."""
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, torch.randint(0, VOCABULARY, (2, LENGTH))


def make_reads(dtype: torch.dtype, *, zero: bool = False) -> list[tuple[Tensor, Tensor]]:
    """(query, key_weight) for each read of WRITES writes but the first one."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(WRITES, WIDTH, generator=generator, dtype=dtype) * (0.0 if zero else 0.5)
    weights = 1 + 0.1 * torch.randn(WRITES, WIDTH, generator=generator, dtype=dtype)
    return [(q.requires_grad_(), w.requires_grad_()) for q, w in zip(queries, weights, strict=True)]


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("build", "logits"), MODELS)
def test_plain_equals_transformers(build: Callable, logits: Logits, dtype: torch.dtype) -> None:
    model, ids = make(build, dtype)
    assert relative_error(logits(model, ids), model(input_ids=ids).logits) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("build", "logits"), MODELS)
def test_plain_gradients_equal_transformers(build: Callable, logits: Logits, dtype: torch.dtype) -> None:
    model, ids = make(build, dtype)
    parameters = list(model.parameters())
    cotangent = torch.randn(2, LENGTH, VOCABULARY, dtype=dtype)
    expected = torch.autograd.grad(model(input_ids=ids).logits, parameters, cotangent)
    got = torch.autograd.grad(logits(model, ids), parameters, cotangent)
    for (name, _), ours, theirs in zip(model.named_parameters(), got, expected, strict=True):
        assert relative_error(ours, theirs) < 10 * TOLERANCE[dtype], name


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, WRITES, WRITES + 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("build", "logits"), MODELS)
def test_zero_queries_times_sources_give_the_plain_model(
    build: Callable, logits: Logits, dtype: torch.dtype, block_size: int
) -> None:
    model, ids = make(build, dtype)
    got = logits(model, ids, make_reads(dtype, zero=True), block_size=block_size, scale="sum")
    # The sources are added in another order than the stream's. Llama's norms round that difference to fp32.
    tolerance = 1e-6 if dtype == torch.float64 and build is llama else TOLERANCE[dtype]
    assert relative_error(got, logits(model, ids)) < tolerance


def test_wide_norms_are_the_same_model() -> None:
    model, ids = make(llama, torch.float64)
    names = list(model.state_dict())
    plain = model(input_ids=ids).logits
    widen_norms(model)
    assert list(model.state_dict()) == names
    wide = model(input_ids=ids).logits
    assert 1e-10 < relative_error(wide, plain) < 1e-5
    assert relative_error(llama_logits(model, ids, norm_dtype=torch.float64), wide) < 1e-12


@pytest.mark.parametrize("block_size", [1, 2, 3, 5])
def test_llama_with_wide_norms_reaches_fp64(block_size: int) -> None:
    model, ids = make(llama, torch.float64)
    zero = make_reads(torch.float64, zero=True)
    got = llama_logits(model, ids, zero, block_size=block_size, scale="sum", norm_dtype=torch.float64)
    assert relative_error(got, llama_logits(model, ids, norm_dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize(("build", "logits"), MODELS)
def test_random_queries_change_the_model_and_get_gradients(build: Callable, logits: Logits) -> None:
    model, ids = make(build, torch.float64)
    reads = make_reads(torch.float64)
    got = logits(model, ids, reads, block_size=2)
    assert relative_error(got, logits(model, ids)) > 1e-2
    leaves = [tensor for read in reads for tensor in read]
    cotangent = torch.randn_like(got)
    for gradient in torch.autograd.grad(got, [*leaves, *model.parameters()], cotangent):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("build", "logits"), MODELS)
def test_reads_too_many_or_too_few_are_refused(build: Callable, logits: Logits) -> None:
    model, ids = make(build, torch.float32)
    reads = make_reads(torch.float32)
    with pytest.raises(IndexError):
        logits(model, ids, reads[:-1], block_size=2)
    with pytest.raises(AssertionError):
        logits(model, ids, [*reads, reads[0]], block_size=2)


def test_mix_by_hand() -> None:
    """Two sources, one token, width 2, worked out on paper."""
    first, second = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])
    query, weight = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 7.0])
    # RMS of (3, 4) is sqrt(12.5); the query sees the first component only: logits 5 * 3 / sqrt(12.5) and 0.
    share = 1 / (1 + torch.exp(torch.tensor(-15 / 12.5**0.5)))
    expected = share * first + (1 - share) * second
    torch.testing.assert_close(mix([first, second], query, weight, eps=0.0), expected)
    torch.testing.assert_close(mix([first, second], query, weight, eps=0.0, scale="sum"), 2 * expected)


@pytest.mark.parametrize(
    ("block_size", "expected"),
    [
        (1, ["0", "0,1", "0,1,2", "0,1,2,4", "0,1,2,4,8", "0,1,2,4,8,16"]),
        (2, ["0", "0,1", "0,3", "0,3,4", "0,3,12", "0,3,12,16"]),
        (3, ["0", "0,1", "0,3", "0,7", "0,7,8", "0,7,24"]),
        (5, ["0", "0,1", "0,3", "0,7", "0,15", "0,31"]),
        (9, ["0", "0,1", "0,3", "0,7", "0,15", "0,31"]),
    ],
)
def test_sources_of_each_read(block_size: int, expected: list[str]) -> None:
    """Equation 6. Write i is 2**i over a root of 0, so a source's number tells which writes it sums."""
    vectors = [torch.zeros(1)] * 5
    residuals = BlockResiduals(torch.zeros(1, 1, 1), block_size, vectors, vectors)
    seen = []
    for i in range(6):
        seen.append(",".join(str(int(source.item())) for source in residuals.sources))
        residuals.read()
        residuals.write(torch.full((1, 1, 1), 2.0**i))
    residuals.finish()
    assert seen == expected
