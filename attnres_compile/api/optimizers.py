"""``param_groups``: the parameter groups of a prepared model for any torch optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from attnres_compile.model.parameters import require_parameters


def param_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups of a prepared model: decayed matrices, undecayed vectors, undecayed AttnRes parameters.

    Args:
        lr: learning rate of all groups.
        weight_decay: of parameters with two dimensions or more; biases, norms, pseudo-queries and key norms get 0.

    Returns:
        Groups for any torch optimizer; every trainable parameter is in exactly one. The last group, named
        "attnres", holds the pseudo-queries and key norms.

    Raises:
        NotPreparedError.
    """
    added = require_parameters(model)
    ours = {id(parameter) for parameter in added.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in ours]
    groups = [
        {"params": [parameter for parameter in rest if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
        {
            "params": [parameter for parameter in added.parameters() if parameter.requires_grad],
            "weight_decay": 0.0,
            "name": "attnres",
        },
    ]
    return [{**group, "lr": lr} for group in groups if group["params"]]
