"""GPT-2 with Block AttnRes by hand, on the parameters of a transformers model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from tests.reference.attention import causal_attention, split_heads
from tests.reference.block_attnres import (
    KEY_NORM_EPS,
    BlockResiduals,
    ReadParameters,
    Scale,
    make_residuals,
)


def gpt2_logits(
    model: GPT2LMHeadModel,
    input_ids: Tensor,
    reads: Sequence[ReadParameters] | None = None,
    *,
    block_size: int | None = None,
    eps: float = KEY_NORM_EPS,
    scale: Scale = "mean",
) -> Tensor:
    """Logits [B, T, vocabulary] for input_ids [B, T], without dropout.

    reads: (query, key_weight) of each read with two sources or more, in read order: before each attention but
    the first, before each MLP, and before the final norm. None gives the plain GPT-2. Gradients flow into the
    model's own parameters.
    """
    assert_no_dropout(model)
    body = model.transformer
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    root = F.embedding(input_ids, body.wte.weight) + F.embedding(positions, body.wpe.weight)
    residuals = make_residuals(root, reads, block_size, eps, scale)
    for layer in body.h:
        residuals.write(_attention(layer.attn, _layer_norm(layer.ln_1, residuals.read())))
        residuals.write(_mlp(layer.mlp, _layer_norm(layer.ln_2, residuals.read())))
    hidden = _layer_norm(body.ln_f, residuals.read())
    if isinstance(residuals, BlockResiduals):
        residuals.finish()
    return hidden @ model.lm_head.weight.T


def assert_no_dropout(model: nn.Module) -> None:
    """The hand-written models have no dropout, so the given one must not apply any."""
    active = [name for name, part in model.named_modules() if isinstance(part, nn.Dropout) and part.p > 0]
    assert not (model.training and active), f"call .eval() or set dropout to 0: {active[:3]}"


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    centered = x - mean
    variance = centered.square().mean(dim=-1, keepdim=True)
    return centered * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias


def _attention(attention: nn.Module, x: Tensor) -> Tensor:
    projected = x @ attention.c_attn.weight + attention.c_attn.bias  # [B, T, 3 d]
    query, key, value = (split_heads(part, attention.num_heads) for part in projected.chunk(3, dim=-1))
    return causal_attention(query, key, value) @ attention.c_proj.weight + attention.c_proj.bias


def _mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    inner = F.gelu(x @ mlp.c_fc.weight + mlp.c_fc.bias, approximate="tanh")
    return inner @ mlp.c_proj.weight + mlp.c_proj.bias
