"""Reads by other mechanisms than the paper's, by hand: stacked, in the dtype of the inputs, of no code under test.

The rows of the paper's Table 4, and values that are normed, in the words of docs/variants.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.block_attnres import KEY_NORM_EPS, BlockResiduals, Scale


def variant_mix(
    sources: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
    eps: float = KEY_NORM_EPS,
    scale: Scale = "mean",
    **variant: Any,
) -> Tensor:
    """One read, per token.

    sources: n tensors [B, T, d]; parameters: "query" [d], or "query_projection.weight" [d, d] in its place, and, of a
    key norm with a weight, "key_norm.weight" [d];
    variant: options that are not the paper's. Gives [B, T, d].
    """
    heads = variant.get("heads", 1)
    values = torch.stack(list(sources))  # [n, B, T, d]
    keys = values
    if variant.get("key_norm", "weight") != "none":
        keys = values / (values.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
    if variant.get("key_norm", "weight") == "weight":
        keys = keys * parameters["key_norm.weight"]
    if variant.get("query", "learned") == "learned":
        query = parameters["query"].expand(values.shape[1:])  # [B, T, d]
    else:
        newest = values[-1] / (values[-1].pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
        query = torch.einsum("btd,cd->btc", newest, parameters["query_projection.weight"])
    logits = torch.einsum("nbthc,bthc->nbth", _split(keys, heads), _split(query, heads))
    logits = variant.get("logit_scale", 1.0) * logits
    if variant.get("mixing", "softmax") == "softmax":
        weights = torch.softmax(logits, dim=0)
    else:
        weights = 2 * torch.sigmoid(logits) / len(values)
    if variant.get("value_norm", "none") == "plain":
        values = values / (values.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
    mixed = torch.einsum("nbth,nbthc->bthc", weights, _split(values, heads)).flatten(-2)
    return mixed * len(values) if scale == "sum" else mixed


def _split(value: Tensor, heads: int) -> Tensor:
    return value.reshape(*value.shape[:-1], heads, -1)


class VariantResiduals(BlockResiduals):
    """Block AttnRes by another mechanism. reads: the parameters of each read with two sources or more, by name."""

    def __init__(
        self,
        root: Tensor,
        block_size: int,
        reads: Sequence[Mapping[str, Tensor]],
        eps: float = KEY_NORM_EPS,
        scale: Scale = "mean",
        **variant: Any,
    ) -> None:
        super().__init__(root, block_size, [], [], eps, scale)
        self.reads, self.variant = list(reads), variant

    @property
    def attended(self) -> list[Tensor]:
        """The root, the last blocks, and the open one's sum."""
        window = self.variant.get("window")
        blocks = self.blocks if window is None else self.blocks[max(len(self.blocks) - window, 0) :]
        open_block = [sum(self.partial[1:], start=self.partial[0])] if self.partial else []
        return [self.root, *blocks, *open_block]

    def read(self) -> Tensor:
        if not self.blocks and not self.partial:
            return self.root
        parameters = self.reads[self.reads_done]
        self.reads_done += 1
        return variant_mix(self.attended, parameters, self.eps, self.scale, **self.variant)

    def finish(self) -> None:
        assert self.reads_done == len(self.reads), (self.reads_done, len(self.reads))
