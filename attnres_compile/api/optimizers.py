"""``param_groups``: the parameter groups of a prepared model for any torch optimizer, or for Muon and another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, overload

from torch import nn

from attnres_compile.model.parameters import parameters_of, require_prepared

Groups = list[dict[str, Any]]


@overload
def param_groups(model: nn.Module, *, lr: float, weight_decay: float, muon: Literal[False] = False) -> Groups: ...


@overload
def param_groups(model: nn.Module, *, lr: float, weight_decay: float, muon: Literal[True]) -> tuple[Groups, Groups]: ...


def param_groups(
    model: nn.Module, *, lr: float, weight_decay: float, muon: bool = False
) -> Groups | tuple[Groups, Groups]:
    """Optimizer groups of a prepared model: decayed matrices, undecayed vectors, undecayed AttnRes parameters.

    Args:
        lr: learning rate of all groups.
        weight_decay: of parameters with two dimensions or more; biases, norms, pseudo-queries and key norms get 0.
        muon: give the matrices inside the layers of the residual streams apart, for ``torch.optim.Muon``, which takes
            matrices only. Embeddings, the output layer and parameters with three dimensions or more are not among
            them. The other optimizer holds the AttnRes parameters: step it first.

    Returns:
        Groups for any torch optimizer; every trainable parameter is in exactly one. The last group, named
        "attnres", holds the pseudo-queries and key norms. With ``muon``, the groups for Muon and those for the other
        optimizer.

    Raises:
        NotPreparedError.
    """
    prepared = require_prepared(model)
    added = parameters_of(prepared)
    assert added is not None
    ours = {id(parameter) for parameter in added.parameters()}
    hidden = {id(parameter) for parameter in _hidden_matrices(prepared)} if muon else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = [parameter for parameter in trained if id(parameter) not in ours | hidden]
    groups = [
        {"params": [parameter for parameter in rest if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
        {
            "params": [parameter for parameter in added.parameters() if parameter.requires_grad],
            "weight_decay": 0.0,
            "name": "attnres",
        },
    ]
    matrices = {"params": [one for one in trained if id(one) in hidden], "weight_decay": weight_decay, "lr": lr}
    others = [{**group, "lr": lr} for group in groups if group["params"]]
    return ([matrices] if matrices["params"] else [], others) if muon else others


def _hidden_matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """The matrices inside the layers that write to a stream, without embeddings."""
    added = parameters_of(model)
    assert added is not None
    layers = {_layer(write.module) for stream in added.plan.streams for write in stream.writes}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        # As in the paths of a plan, wrappers of checkpoints are left out.
        path = [part for part in name.split(".") if part != "_checkpoint_wrapped_module"]
        inside = any(tuple(path[:length]) in layers for length in range(1, len(path)))
        if inside and parameter.ndim == 2 and id(parameter) not in embeddings:
            yield parameter


def _layer(module: str) -> tuple[str, ...]:
    """Path of the layer that a sublayer is in: up to its last number; the sublayer itself where there is none."""
    parts = tuple(module.split("."))
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
    return parts[: last + 1]
