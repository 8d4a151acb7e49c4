"""Llama with Block AttnRes by hand, on the parameters of a transformers model.

transformers computes two things in fp32 whatever the model's dtype: the norms, and the rotary angles. Both
are mirrored here operation by operation. A compiler that reorders those fp32 operations (Inductor does) still
differs from them by fp32 rounding; `widen_norms` takes the larger of the two out of an fp64 comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.reference.attention import causal_attention, split_heads
from tests.reference.block_attnres import (
    KEY_NORM_EPS,
    BlockResiduals,
    ReadParameters,
    Scale,
    make_residuals,
)


def llama_logits(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    reads: Sequence[ReadParameters] | None = None,
    *,
    block_size: int | None = None,
    eps: float = KEY_NORM_EPS,
    scale: Scale = "mean",
    norm_dtype: torch.dtype = torch.float32,
    attend: Callable[..., Tensor] = causal_attention,
) -> Tensor:
    """Logits [B, T, vocabulary] for input_ids [B, T].

    reads: (query, key_weight) of each read with two sources or more, in read order: before each attention but
    the first, before each MLP, and before the final norm. None gives the plain Llama. Gradients flow into the
    model's own parameters. norm_dtype: what the model's norms compute in; fp32 is what transformers does.
    attend: (query, key, value, window) to the attention's output, as ``causal_attention``.

    The decoders that differ from Llama by biases or a sliding window only, as Qwen 2, are computed as well.
    """
    body, config = model.model, model.config
    root = F.embedding(input_ids, body.embed_tokens.weight)
    angles = _rotary(config, input_ids, root.dtype)
    residuals = make_residuals(root, reads, block_size, eps, scale)
    for layer in body.layers:
        attention_input = _rms_norm(layer.input_layernorm, residuals.read(), norm_dtype)
        residuals.write(_attention(layer.self_attn, attention_input, angles, config, attend))
        mlp_input = _rms_norm(layer.post_attention_layernorm, residuals.read(), norm_dtype)
        residuals.write(_mlp(layer.mlp, mlp_input))
    hidden = _rms_norm(body.norm, residuals.read(), norm_dtype)
    if isinstance(residuals, BlockResiduals):
        residuals.finish()
    return _linear(model.lm_head, hidden)


class WideRMSNorm(nn.Module):
    """LlamaRMSNorm without its cast to fp32, on the same Parameter."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return _rms_norm(self, x, x.dtype)


def widen_norms(model: LlamaForCausalLM) -> None:
    """Make the model's norms compute in the model's dtype, in place. Pair it with ``norm_dtype``."""
    for layer in model.model.layers:
        layer.input_layernorm = WideRMSNorm(layer.input_layernorm)
        layer.post_attention_layernorm = WideRMSNorm(layer.post_attention_layernorm)
    model.model.norm = WideRMSNorm(model.model.norm)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _rms_norm(norm: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    wide = x.to(dtype)
    mean_square = wide.pow(2).mean(-1, keepdim=True)
    return norm.weight * (wide * torch.rsqrt(mean_square + norm.variance_epsilon)).to(x.dtype)


def _rotary(config: LlamaConfig, input_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, e] for positions 0 .. T - 1, in fp32 and then cast."""
    rope = config.rope_parameters
    assert rope["rope_type"] == "default", rope
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=input_ids.device) / width
    frequencies = 1.0 / (rope["rope_theta"] ** exponents)  # [e / 2]
    positions = torch.arange(input_ids.shape[1], dtype=torch.float32, device=input_ids.device)
    angles = torch.cat([positions[:, None] * frequencies] * 2, dim=-1)  # [T, e]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _attention(
    attention: nn.Module,
    x: Tensor,
    angles: tuple[Tensor, Tensor],
    config: LlamaConfig,
    attend: Callable[..., Tensor],
) -> Tensor:
    query = split_heads(_linear(attention.q_proj, x), config.num_attention_heads)
    key = split_heads(_linear(attention.k_proj, x), config.num_key_value_heads)
    value = split_heads(_linear(attention.v_proj, x), config.num_key_value_heads)
    window = getattr(attention, "sliding_window", None)
    return _linear(attention.o_proj, attend(_rotate(query, *angles), _rotate(key, *angles), value, window))


def _mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    return _linear(mlp.down_proj, F.silu(_linear(mlp.gate_proj, x)) * _linear(mlp.up_proj, x))
