"""Causal multi-head attention in plain PyTorch, shared by the hand-written models."""

from __future__ import annotations

import torch
from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * e] to [B, heads, T, e]."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """Softmax attention over earlier tokens.

    query: [B, H, T, e]; key, value: [B, H / g, T, e], each head serving g query heads. Gives [B, T, H * e].
    window: how many tokens each one sees, itself among them; None for all.
    """
    batch, heads, length, head_width = query.shape
    group = heads // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) * head_width**-0.5  # [B, H, T, T]
    unseen = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    if window is not None:
        unseen |= torch.ones_like(unseen).tril(-window)
    weights = scores.masked_fill(unseen, float("-inf")).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).reshape(batch, length, heads * head_width)
