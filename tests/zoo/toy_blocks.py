"""PreNorm blocks that differ in how they write to, or read from, the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention, causal or not, on one sequence or across two."""

    def __init__(self, width: int, heads: int = 4, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        key, value = self.key_value(x if memory is None else memory).chunk(2, dim=-1)
        query, key, value = (self._split(part) for part in (self.query(x), key, value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class PreNormBlock(nn.Module):
    """The plain block; the others change one thing about it."""

    def __init__(self, width: int, causal: bool = True) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, causal=causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CrossBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.ln_cross = nn.LayerNorm(width)
        self.cross = Attention(width, causal=False)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        x = x + self.cross(self.ln_cross(x), memory)
        return x + self.mlp(self.ln_2(x))


class ParallelOneNormBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        del self.ln_2

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        return x + (self.attn(normed) + self.mlp(normed))


class ParallelTwoNormsBlock(PreNormBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))


class InplaceIaddBlock(PreNormBlock):
    """Cannot be trained eagerly: the norm's saved input is overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.attn(self.ln_1(x))
        x += self.mlp(self.ln_2(x))
        return x


class InplaceAddMethodBlock(PreNormBlock):
    """Cannot be trained eagerly: the norm's saved input is overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        x.add_(self.attn(self.ln_1(x)))
        x.add_(self.mlp(self.ln_2(x)))
        return x


class InplaceOnBranchBlock(PreNormBlock):
    def forward(self, x: Tensor) -> Tensor:
        branch = self.attn(self.ln_1(x))
        branch += x
        x = branch
        branch = self.mlp(self.ln_2(x))
        branch += x
        return branch


class DropoutOnBranchBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x)))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class DropoutOnStreamBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x + self.attn(self.ln_1(x)))
        return self.dropout(x + self.mlp(self.ln_2(x)))


class CommutedBlock(PreNormBlock):
    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.ln_1(x)) + x
        return self.mlp(self.ln_2(x)) + x


class CastBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.attn(self.ln_1(x))
        x = (x.to(torch.float32) + branch.to(torch.float32)).to(torch.bfloat16)
        branch = self.mlp(self.ln_2(x))
        return (x.float() + branch).type_as(branch)


class ReshapedBlock(PreNormBlock):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        shape = x.shape
        x = x.reshape(-1, x.size(-1))
        return (x + self.mlp(self.ln_2(x))).view(shape)


class LayerScaleBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gamma_1 = nn.Parameter(torch.full((width,), 0.1))
        self.gamma_2 = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.ln_1(x))
        return x + self.gamma_2 * self.mlp(self.ln_2(x))


class DropPathBlock(PreNormBlock):
    keep = 0.8

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop_path(self.attn(self.ln_1(x)))
        return x + self._drop_path(self.mlp(self.ln_2(x)))

    def _drop_path(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        mask = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(self.keep)
        return branch * mask / self.keep


class SandwichBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.post_1 = nn.LayerNorm(width)
        self.post_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.post_1(self.attn(self.ln_1(x)))
        return x + self.post_2(self.mlp(self.ln_2(x)))


class HandwrittenRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class HandwrittenNormBlock(PreNormBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.ln_1 = HandwrittenRMSNorm(width)
        self.ln_2 = HandwrittenRMSNorm(width)
