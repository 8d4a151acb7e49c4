"""The decode step of a benchmark: it computes what the whole sequence gives, or says why it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attnres_compile as ac
from attnres_compile.measure import model_pair
from attnres_compile.measure.decode import DecodeError, check_decodable, decode_step
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model

transformers = pytest.importorskip("transformers")

TINY = LoadOptions(batch=2, seq=12)


def prepared(name: str, **options):
    """A prepared tiny model with its tokens; queries are zero."""
    loaded = load_model(name, TINY)
    plan = ac.prepare(loaded.model, (), loaded.kwargs, inner="eager", num_blocks=2, **options)
    return loaded.model, loaded.kwargs["input_ids"], plan


def last_logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, -1]


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_a_rewritten_step_gives_what_the_whole_sequence_gives(name):
    """Under random queries, in one graph that holds every read; and every call anew."""
    model, tokens, plan = prepared(name, schedule="two_phase")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.attnres.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    with ac.plain(model):
        plain = last_logits(model, tokens)
    step = decode_step(model, tokens, graphs=False)
    model.compile(backend="attnres", fullgraph=True)
    first = step.run().logits[:, -1]
    assert ac.status(model).state == "rewritten"
    # All but the first read, which has one source.
    assert ac.status(model).reads == len(plan.streams[0].reads) - 1 == 8
    graphs = ac.status(model).graphs
    for _ in range(3):
        step()
    step.set_back()
    assert torch.equal(step.run().logits[:, -1], first)
    assert ac.status(model).graphs == graphs, "a later call compiled anew"
    torch.compiler.reset()
    whole = last_logits(model, tokens)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)
    assert (first - plain).abs().max() > 1e-2, "the queries change nothing, so nothing was tested"


def test_zero_queries_and_sums_decode_as_the_plain_model_without_a_cache():
    model, tokens, _ = prepared("llama-tiny", scale="sum")
    expected = last_logits(model_pair.plain_copy(model), tokens)
    step = decode_step(model, tokens, graphs=False)
    model.compile(backend="attnres")
    torch.testing.assert_close(step.run().logits[:, -1], expected, rtol=1e-4, atol=1e-5)
    assert ac.status(model).state == "rewritten"


def test_the_plain_step_decodes_too():
    loaded = load_model("gpt2-tiny", TINY)
    tokens = loaded.kwargs["input_ids"]
    step = decode_step(loaded.model, tokens, graphs=False)
    step()
    step.set_back()
    expected = last_logits(loaded.model, tokens)
    torch.testing.assert_close(step.run().logits[:, -1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "seq", "message"),
    [
        ("vit-tiny", None, "no causal language model of transformers"),
        ("t5-tiny", 8, "is an encoder-decoder"),
        ("gpt2-tiny", 1, "pass --seq 2 or more"),
    ],
)
def test_what_cannot_be_decoded_says_why(name, seq, message):
    loaded = load_model(name, LoadOptions(seq=seq))
    with pytest.raises(DecodeError, match=message):
        check_decodable(loaded.model, loaded.args, loaded.kwargs)


def test_other_inputs_than_tokens_cannot_be_decoded():
    loaded = load_model("gpt2-tiny", TINY)
    tokens = loaded.kwargs["input_ids"]
    with pytest.raises(DecodeError, match="is called with argument 0, labels, and"):
        check_decodable(loaded.model, (tokens,), {"labels": tokens})
    with pytest.raises(DecodeError, match="Linear is no causal language model"):
        check_decodable(nn.Linear(2, 2), (), {})


def test_a_cache_that_forgets_cannot_be_set_back():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MistralConfig(vocab_size=32, num_key_value_heads=1, sliding_window=4, **sizes)
    model = transformers.MistralForCausalLM(config)
    with pytest.raises(DecodeError, match="layers of the kind StaticSlidingWindowLayer"):
        decode_step(model, torch.zeros(1, 8, dtype=torch.long), graphs=False)


def test_a_model_that_fails_on_its_cache_says_how(monkeypatch):
    loaded = load_model("gpt2-tiny", TINY)
    loaded.model.transformer.h[0].attn.forward = lambda *args, **kwargs: 1 / 0
    with pytest.raises(DecodeError, match=r"does not fill a StaticCache \(ZeroDivisionError: division by zero\)"):
        decode_step(loaded.model, loaded.kwargs["input_ids"], graphs=False)
