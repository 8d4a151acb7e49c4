"""What is recorded of a trained model: magnitudes and gradient norms over depth, and the weights of its reads.

The same instrument on both sides. A plain model is recorded as what it equals: one block, zero queries and
``scale="sum"``, where each read is the plain residual sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import attnres_compile

from .model import Trained, new_model

AS_PLAIN = {"num_blocks": 1, "scale": "sum"}
_BATCHES = 4


def recorded(trained: Trained, batches: list[Tensor]) -> dict[str, Any]:
    """A recording of forward and backward passes on a few batches, as ``DepthWeights.from_dict`` reads it.

    Args:
        trained: at the end of its training.
        batches: of the validation text.
    """
    size = trained.size
    model = new_model(size, 0)
    example = {"input_ids": batches[0], "labels": batches[0]}
    attnres_compile.prepare(model, kwargs=example, **(AS_PLAIN if trained.options is None else trained.options))
    values = dict(trained.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    model.compile(backend="attnres", options={"inner": "eager"})
    with attnres_compile.depth_weights(model) as weights:
        for ids in batches[:_BATCHES]:
            model(input_ids=ids, labels=ids).loss.backward()
    found: dict[str, Any] = _rounded(weights.to_dict())
    return found


def _rounded(value: Any) -> Any:
    """Numbers with four digits, which a picture does not show."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
