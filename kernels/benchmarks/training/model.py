"""A Llama of bytes, plain or with AttnRes, compiled once for all runs of a row: each begins by setting its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import attnres_compile

from .grid import Recipe, Size


def new_model(size: Size, seed: int) -> nn.Module:
    """Untrained, on the CPU, the same for the same seed.

    Args:
        size: of the model.
        seed: of its weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        num_hidden_layers=size.layers,
        hidden_size=size.width,
        num_attention_heads=size.heads,
        intermediate_size=size.inner,
        max_position_embeddings=size.length,
        vocab_size=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=Recipe().deviation,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


class Trained:
    """A model of one size and one set of options, compiled once.

    options: None for the plain model; inner: the compiler behind both backends; device: where it is.
    """

    def __init__(self, size: Size, options: Mapping[str, Any] | None, inner: str, device: str) -> None:
        # What Dynamo compiled of an earlier model counts against its limit, and is not needed any more.
        torch.compiler.reset()
        self.size, self.options, self.device = size, options, device
        self.model = new_model(size, 0).to(device)
        if options is not None:
            attnres_compile.prepare(self.model, kwargs=self.example(), **options)
            self.model.compile(backend="attnres", options={"inner": inner})
        elif inner != "eager":
            self.model.compile(backend=inner)

    def example(self) -> dict[str, Tensor]:
        """Inputs of the shape of a step."""
        ids = torch.zeros(self.size.batch, self.size.length, dtype=torch.long, device=self.device)
        return {"input_ids": ids, "labels": ids}

    def begin(self, seed: int) -> None:
        """Weights as ``new_model`` makes them; zero queries and key norms of one."""
        self.set_plain(new_model(self.size, seed).state_dict())

    def set_plain(self, state: Mapping[str, Tensor]) -> None:
        """Weights of a plain model, untouched AttnRes parameters.

        Args:
            state: the state dict of a plain model of this size.
        """
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.grad = None
                if name.startswith("attnres."):
                    parameter.fill_(1.0 if "key_norm" in name else 0.0)
                else:
                    parameter.copy_(state[name])

    def plain_state(self) -> dict[str, Tensor]:
        """Copies of the weights that a plain model has."""
        parameters = self.model.named_parameters()
        return {name: value.detach().clone() for name, value in parameters if not name.startswith("attnres.")}

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross entropy of the next byte, in nats, of ``ids`` ``[batch, length]``."""
        ids = ids.to(self.device)
        found: Tensor = self.model(input_ids=ids, labels=ids).loss
        return found

    def validate(self, batches: list[Tensor]) -> float:
        """Mean loss. In the graph that trains, whose backward is not run: the model has no dropout."""
        return sum(self.loss(ids).item() for ids in batches) / len(batches)
