"""The models of the pipeline tests, each with a forward written by hand, and what the two must agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.block_attnres import ReadParameters, make_residuals

VOCABULARY = 32
LENGTH = 6
WIDTH = 16


class Toy(nn.Module):
    """Embedding, sublayers that each add to the stream, norm and head."""

    def __init__(self, sublayers: int, dropout: float = 0.0, tied: bool = False, normed: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(ToySublayer(dropout) for _ in range(sublayers))
        if not normed:
            for layer in self.layers:
                layer.norm = nn.Identity()
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.norm(x))


class ToySublayer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(F.gelu(self.linear(self.norm(x))))


def toy_logits(model: Toy, tokens: Tensor, reads: list[ReadParameters], block_size: int) -> Tensor:
    residuals = make_residuals(model.embedding(tokens), reads, block_size, 1e-6, "mean")
    for layer in model.layers:
        residuals.write(layer(residuals.read()))
    hidden = model.norm(residuals.read())
    return model.head(hidden)


@dataclass(frozen=True)
class TestModel:
    """make(sublayers); call: the keywords of the model; logits: of the hand-written model with reads."""

    __test__ = False

    make: Callable[[int], nn.Module]
    call: Callable[[Tensor], dict[str, Any]]
    logits: Callable[..., Tensor]


def _gpt2(sublayers: int) -> nn.Module:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(
        n_layer=sublayers // 2, n_embd=WIDTH, n_head=2, vocab_size=VOCABULARY, n_positions=LENGTH,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def _llama(sublayers: int) -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tests.reference.llama import widen_norms

    config = LlamaConfig(
        num_hidden_layers=sublayers // 2, hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=VOCABULARY, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    widen_norms(model)
    return model


def _gpt2_logits(model: Any, tokens: Tensor, reads: list[ReadParameters], block_size: int) -> Tensor:
    from tests.reference.gpt2 import gpt2_logits

    return gpt2_logits(model, tokens, reads, block_size=block_size)


def _llama_logits(model: Any, tokens: Tensor, reads: list[ReadParameters], block_size: int) -> Tensor:
    from tests.reference.llama import llama_logits

    return llama_logits(model, tokens, reads, block_size=block_size, norm_dtype=torch.float64)


def _of_transformers(tokens: Tensor) -> dict[str, Any]:
    return {"input_ids": tokens, "use_cache": False}


MODELS = {
    "toy": TestModel(Toy, lambda tokens: {"tokens": tokens}, toy_logits),
    "gpt2": TestModel(_gpt2, _of_transformers, _gpt2_logits),
    "llama": TestModel(_llama, _of_transformers, _llama_logits),
}


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def data(step: int, rows: int) -> tuple[Tensor, Tensor]:
    """New tokens and targets for every step: with the same ones, a stale store could not be seen."""
    generator = torch.Generator().manual_seed(100 + step)
    drawn = torch.randint(0, VOCABULARY, (2, rows, LENGTH), generator=generator)
    return drawn[0], drawn[1]
