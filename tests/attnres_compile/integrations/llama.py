"""A small Llama of transformers, prepared, with parameters that are not those it begins with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import attnres_compile as ac
from tests.end_to_end.models import randomize

VOCABULARY = 64


def token_ids() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (2, 10), generator=generator)


def plain(layers: int = 2, **more: Any) -> Any:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": layers}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.LlamaConfig(**sizes, **ids, max_position_embeddings=64, **more)
    return transformers.LlamaForCausalLM(config)


def prepared(layers: int = 2, **options: Any) -> Any:
    """Trained, for a test: with queries and key norms at random."""
    model = plain(layers).eval()
    ac.prepare(model, kwargs={"input_ids": token_ids()}, **(options or {"num_blocks": 2}))
    randomize(model)
    return model


def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    model.compile(backend="attnres", options={"inner": "eager"})
    with torch.no_grad():
        found: Tensor = model(input_ids=token_ids() if ids is None else ids).logits
    assert ac.status(model).state == "rewritten"
    return found
