"""Tokens that the compiled model generates, by every kind of cache of transformers, are those of full forwards, without
a cache and without padding, of Block AttnRes written by hand (tests/reference).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import attnres_compile as ac
from tests.end_to_end.models import randomize
from tests.reference.attention import causal_attention
from tests.reference.gpt2 import gpt2_logits
from tests.reference.llama import llama_logits, widen_norms

transformers = pytest.importorskip("transformers")
from transformers.generation import configuration_utils  # noqa: E402

VOCABULARY, NEW, WINDOW = 61, 8, 4
LENGTHS = (9, 3, 7, 5, 10, 4, 8, 6)

CACHES: dict[str, list[dict[str, Any]]] = {
    "none": [{"use_cache": False}],
    "dynamic": [{}, {"cache_implementation": "dynamic"}],
    # The other names are deprecated: the static cache gives sliding layers a window of its own accord.
    "static": [{"cache_implementation": name} for name in ("static", "sliding_window", "hybrid", "hybrid_chunked")],
}
"""Ways to ask ``generate`` for a cache, by what it then is."""

OFFLOADED = ("offloaded", "offloaded_static", "offloaded_hybrid", "offloaded_hybrid_chunked")
QUANTIZED = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
IDS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
# Wide weights: what comes next depends on all of a prompt, and no token is chosen by rounding.
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
DECODER = {**IDS, **SIZES, "num_hidden_layers": 2, "max_position_embeddings": 32, "initializer_range": 0.3}


def gpt2() -> Any:
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 32, "initializer_range": 0.3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**IDS, **sizes))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def qwen2() -> Any:
    """A layer with a sliding window, which prompts exceed, and one without; with biases."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DECODER, **kinds, sliding_window=WINDOW))


@functools.cache
def prepared(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = build().eval()
    ac.prepare(model, kwargs={"input_ids": torch.arange(6)[None]}, num_blocks=2)
    randomize(model)
    return model


@functools.cache
def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """On the left, as generation has it."""
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.zeros(longest - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def by_hand(model: Any, ids: Tensor, attend: Callable[..., Tensor] = causal_attention) -> tuple[Tensor, float]:
    """The next tokens of prompts ``[B, T]`` of one length, from full forwards in fp64; and the narrowest choice: by how
    much the best logit led, as a share of the range of logits.
    """
    wide = copy.deepcopy(model).double()
    (stream,) = wide.attnres.plan.streams
    reads = [(read.query, read.key_norm.weight) for read in wide.attnres.streams[0].reads]
    if not isinstance(wide, transformers.GPT2LMHeadModel):
        widen_norms(wide)
    narrowest, start = 1.0, ids.shape[1]
    with torch.no_grad():
        for _ in range(NEW):
            if isinstance(wide, transformers.GPT2LMHeadModel):
                logits = gpt2_logits(wide, ids, reads, block_size=stream.block_size)[:, -1]
            else:
                more = {"norm_dtype": torch.float64, "attend": attend}
                logits = llama_logits(wide, ids, reads, block_size=stream.block_size, **more)[:, -1]
            best = logits.topk(2).values
            lead = (best[:, 0] - best[:, 1]) / (logits.amax(-1) - logits.amin(-1))
            narrowest = min(narrowest, lead.min().item())
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=-1)
    return ids[:, start:], narrowest


@functools.cache
def expected(build: Callable[[], Any]) -> Tensor:
    """Of every prompt for itself, ``[8, NEW]``."""
    found = [by_hand(prepared(build), row[None]) for row in prompts()]
    assert min(narrowest for _, narrowest in found) > 1e-4, "rounding could choose another token"
    tokens = torch.cat([one for one, _ in found])
    assert len({tuple(row) for row in tokens.tolist()}) == len(LENGTHS), "every prompt goes on in a way of its own"
    return tokens


def generated(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    # On a GPU, generate itself would compile the forward for a static cache, by Inductor.
    options = {"max_new_tokens": NEW, "do_sample": False, "disable_compile": True, **options}
    found = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].cpu()
    status = ac.status(model)
    assert status.state == "rewritten"
    assert status.plain_calls == status.plain_on_purpose_calls == status.refused_calls == 0
    return found


def compiled(build: Callable[[], Any]) -> Any:
    model = copy.deepcopy(prepared(build))
    model.compile(backend="attnres", options={"inner": "eager"})
    return model


@pytest.fixture(autouse=True)
def _many_graphs() -> Any:
    """Each kind of cache has graphs of its own, which come together here."""
    with torch._dynamo.config.patch(recompile_limit=32):
        yield


@pytest.mark.parametrize(("build", "cache"), [(gpt2, "static"), *((qwen2, kind) for kind in CACHES)])
def test_a_padded_batch(build: Callable[[], Any], cache: str) -> None:
    model = compiled(build)
    for options in CACHES[cache]:
        assert torch.equal(generated(model, padded(prompts()), **options), expected(build)), options


def test_prompts_by_themselves_in_caches_of_the_caller() -> None:
    """Not made by ``generate``, one for each prompt."""
    model = compiled(llama)
    for prompt, tokens in zip(prompts(), expected(llama), strict=True):
        made = transformers.DynamicCache(config=model.config)
        assert torch.equal(generated(model, padded([prompt]), past_key_values=made)[0], tokens)
        assert made.get_seq_length() == len(prompt) + NEW - 1, "all but the last token were put into it"


@pytest.mark.parametrize("build", [gpt2, llama, qwen2])
def test_queries_decide_what_is_generated(build: Callable[[], Any]) -> None:
    """What all this compares is not the plain model."""
    torch.manual_seed(0)
    plain = build().eval().generate(**padded(prompts()), max_new_tokens=NEW, do_sample=False)[:, -NEW:]
    assert (plain != expected(build)).any(dim=1).sum() >= 6


def in_fp8(prompt: int) -> Callable[..., Tensor]:
    """Attention as a cache in fp8 makes it: the prompt sees itself as it is, and later tokens see all of it rounded, by
    one scale for all that was put in first.
    """

    def rounded(value: Tensor) -> Tensor:
        scale = value[:, :, :prompt].abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max
        return ((value.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(value.dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        first = causal_attention(query, key, value, window)[:, :prompt]
        later = causal_attention(query, rounded(key), rounded(value), window)[:, prompt:]
        return torch.cat([first, later], dim=1)

    return attend


def test_a_cache_in_fp8() -> None:
    """Rounded keys and values choose other tokens, and the hand-written form, which rounds them too, the same."""
    model, ids = compiled(llama), torch.stack(prompts((6,) * 8))
    exact, _ = by_hand(model, ids)
    tokens, narrowest = by_hand(model, ids, in_fp8(ids.shape[1]))
    assert narrowest > 1e-4
    assert not torch.equal(tokens, exact)
    assert torch.equal(generated(model, {"input_ids": ids}, **QUANTIZED), tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", OFFLOADED)
def test_an_offloaded_cache(cache: str) -> None:
    model = compiled(qwen2).cuda()
    inputs = {name: value.cuda() for name, value in padded(prompts()).items()}
    assert torch.equal(generated(model, inputs, cache_implementation=cache), expected(qwen2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is missing is here")
def test_offloading_needs_a_gpu() -> None:
    """Of the plain model, too: why the kinds above are not tested on a CPU."""
    for cache in OFFLOADED:
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            qwen2().generate(**padded(prompts()), max_new_tokens=NEW, cache_implementation=cache)


def test_every_kind_of_transformers_is_here() -> None:
    here = {one.get("cache_implementation", "dynamic") for many in CACHES.values() for one in many}
    assert set(configuration_utils.ALL_CACHE_IMPLEMENTATIONS) == here | {*OFFLOADED, "quantized"}
