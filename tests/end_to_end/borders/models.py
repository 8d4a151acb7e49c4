"""Small models of transformers, prepared, and the ways to cut them into parts between which the stream crosses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import attnres_compile as ac
from tests.end_to_end.guarded_model import EAGER, randomize

IDS = torch.arange(10).view(2, 5)
_SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "use_cache": False,
}


def gpt2(layers: int) -> nn.Module:
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": layers, "n_head": 2}
    config = transformers.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
    return transformers.GPT2LMHeadModel(config)


def llama(layers: int) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES, num_hidden_layers=layers))


def qwen3(layers: int) -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_SIZES, num_hidden_layers=layers))


MODELS: dict[str, Callable[[int], nn.Module]] = {"gpt2": gpt2, "llama": llama, "qwen3": qwen3}


def plain(name: str, layers: int = 2) -> nn.Module:
    """A model in fp64, in training."""
    torch.manual_seed(0)
    return MODELS[name](layers).double().train()


def prepared(name: str, layers: int = 2, **options: Any) -> nn.Module:
    """That model with queries and key norms that are not those of the beginning."""
    model = plain(name, layers)
    ac.prepare(model, (), {"input_ids": IDS}, **options)
    randomize(model)
    return model


def layers(model: nn.Module) -> nn.ModuleList:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def whole(model: nn.Module) -> nn.Module:
    model.compile(backend="attnres", options=EAGER, fullgraph=True)
    return model


def per_block(model: nn.Module) -> nn.Module:
    for layer in layers(model):
        layer.compile(backend="attnres", options=EAGER)
    return model


def broken(model: nn.Module) -> nn.Module:
    """Compiled as a whole, with a graph break before layer 1."""
    layers(model)[1].register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    model.compile(backend="attnres", options=EAGER)
    return model


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one step, and every gradient."""
    logits = model(input_ids=IDS).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten())
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def assert_same(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], wanted[0], atol=1e-10, rtol=0)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, atol=1e-10, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
