"""Copies of models and inputs on the meta device: shapes and dtypes without data, whatever the size."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def weightless_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters and buffers are on the meta device; none of its data is copied.

    Tensors that are plain attributes of a module are no parameters, and are copied as they are.
    """
    stand_ins: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        stand_ins[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        stand_ins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, stand_ins)


def weightless_inputs(inputs: Any) -> Any:
    """The tensors inside ``inputs`` on the meta device."""
    return tree_map_only(
        Tensor, lambda value: torch.empty_like(value, device="meta").requires_grad_(value.requires_grad), inputs
    )
