"""The compiled model against Block AttnRes written by hand (tests/reference): logits and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import attnres_compile as ac
from tests.reference.gpt2 import gpt2_logits
from tests.reference.llama import llama_logits, widen_norms

BLOCKS = [
    {"block_size": 1},
    {"block_size": 2},
    {"block_size": 3},
    {"block_size": 5},
    {"num_blocks": 1},
    {"num_blocks": 8},
]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
LAYERS = 3
SPREAD = 0.05  # of the weights: with the default, 0.02, fp32 gradients of a model this small lose a digit more


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        n_layer=LAYERS,
        n_embd=32,
        n_head=4,
        n_positions=16,
        vocab_size=61,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=SPREAD,
    )
    return GPT2LMHeadModel(config)


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        max_position_embeddings=16,
        initializer_range=SPREAD,
    )
    return LlamaForCausalLM(config)


def hand_written(model: PreTrainedModel, ids: Tensor, block_size: int, direction: Tensor) -> tuple[Tensor, dict]:
    """Logits and gradients in fp64, on a copy: in fp32 the hand-written form is the less exact of the two."""
    model = copy.deepcopy(model).double()
    reads = [(read.query, read.key_norm.weight) for read in model.attnres.streams[0].reads]
    if isinstance(model, GPT2LMHeadModel):
        logits = gpt2_logits(model, ids, reads, block_size=block_size)
    else:
        widen_norms(model)
        logits = llama_logits(model, ids, reads, block_size=block_size, norm_dtype=torch.float64)
    (logits * direction).sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.detach() - expected).abs().max() / expected.abs().max()).item()


def check(build: Callable[[], PreTrainedModel], dtype: torch.dtype, blocks: dict, inner: str, schedule: str) -> None:
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    model.config.use_cache = False
    if isinstance(model, LlamaForCausalLM) and dtype == torch.float64:
        widen_norms(model)
    ids = torch.randint(0, 61, (2, 11))
    plan = ac.prepare(model, kwargs={"input_ids": ids}, schedule=schedule, **blocks)
    assert len(plan.streams) == 1
    assert len(plan.streams[0].writes) == 2 * LAYERS
    with torch.no_grad():
        for read in model.attnres.streams[0].reads:
            read.query.normal_(std=0.5)
            read.key_norm.weight.normal_(1.0, 0.25)
    direction = torch.randn(2, 11, 61, dtype=dtype)
    expected, gradients = hand_written(model, ids, plan.streams[0].block_size, direction.double())

    model.compile(backend="attnres", options={"inner": inner})
    found = model(input_ids=ids).logits
    (found * direction).sum().backward()

    assert ac.status(model).state == "rewritten"
    assert relative(found, expected) < TOLERANCES[dtype]
    assert len(gradients) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert gradients[name].abs().max() > 0, name
        assert relative(parameter.grad, gradients[name]) < TOLERANCES[dtype], name


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("build", [gpt2, llama])
def test_logits_and_every_gradient(build: Callable, blocks: dict) -> None:
    check(build, torch.float64, blocks, "eager", "auto")


@pytest.mark.parametrize("block_size", [1, 5])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_in_the_precision_of_models(build: Callable, block_size: int) -> None:
    """Outputs as sources of their own, and summed up in fp32."""
    check(build, torch.float32, {"block_size": block_size}, "eager", "auto")


@pytest.mark.parametrize("schedule", ["naive", "direct", "two_phase"])
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_every_schedule_and_inner_compiler(inner: str, schedule: str) -> None:
    check(gpt2, torch.float64, {"block_size": 3}, inner, schedule)


# Inductor reorders the fp32 arithmetic that transformers' Llama keeps inside, so that one is compared in fp32 only.
@pytest.mark.parametrize(
    ("build", "dtype"),
    [(gpt2, torch.float32), (gpt2, torch.float64), (llama, torch.float32)],
    ids=["gpt2-float32", "gpt2-float64", "llama-float32"],
)
def test_under_inductor(build: Callable, dtype: torch.dtype) -> None:
    check(build, dtype, {"block_size": 3}, "inductor", "auto")


@pytest.mark.interpreter
@pytest.mark.parametrize(("build", "inner"), [(gpt2, "inductor"), (llama, "eager")])
def test_on_generated_kernels(build: Callable, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_KERNELS", "triton")
    check(build, torch.float32, {"block_size": 3}, inner, "auto")
