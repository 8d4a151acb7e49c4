"""Training that goes from one process to two and back by torch.distributed.checkpoint, for its test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

import attnres_compile as ac
from attnres_compile.model.errors import SavedStateError
from tests.attnres_compile.api.plans import OTHERS, SAVED, prepared
from tests.end_to_end.models import tokens

Run = tuple[nn.Module, Optimizer]


def compiled(model: nn.Module) -> nn.Module:
    model.compile(backend="attnres", options={"inner": "eager"})
    return model


def optimizer(model: nn.Module) -> Optimizer:
    return AdamW(ac.param_groups(model, lr=1e-2, weight_decay=0.1))


def sharded(seed: int = 0, **options: Any) -> Run:
    """On all ranks, layer by layer, as it is trained; every parameter of AttnRes is cut in two as well."""
    model = prepared(seed, **options).double()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.attnres.parameters())
    assert all(parameter.to_local().numel() < parameter.numel() for parameter in model.attnres.parameters())
    return model, optimizer(compiled(model))


def whole(seed: int = 0, **options: Any) -> Run:
    """In one process."""
    model = compiled(prepared(seed, **options).double())
    return model, optimizer(model)


def train(run: Run, steps: range) -> None:
    """Every rank sees the same tokens, so that the mean of two gradients is that of one process."""
    for step in steps:
        torch.manual_seed(step)
        ids = tokens(4, 8)
        model, stepped = run
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        stepped.step()
        stepped.zero_grad()
    assert ac.status(run[0]).state == "rewritten"


def save(run: Run, folder: Path) -> None:
    model, optimizer = get_state_dict(*run)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(run: Run, folder: Path) -> None:
    model, optimizer = get_state_dict(*run)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_state_dict(*run, model_state_dict=model, optim_state_dict=optimizer)


def values(run: Run) -> dict[str, Tensor]:
    """All that the run would save, gathered."""
    model, optimizer = get_state_dict(*run)
    of_optimizer = {
        f"{name} {key}": value for name, state in optimizer["state"].items() for key, value in state.items()
    }
    tensors = {**model, **of_optimizer}
    return {name: (one.full_tensor() if isinstance(one, DTensor) else one).clone() for name, one in tensors.items()}


def on_two_ranks(rank: int, size: int, folder: str) -> None:
    """Go on with what one process saved, and save for one process."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    run = sharded(1, **SAVED)
    load(run, Path(folder, "of one"))
    expected = torch.load(Path(folder, "of one.pt"))
    found = values(run)
    assert found.keys() == expected.keys()
    assert not [name for name, value in found.items() if not torch.equal(value, expected[name])]
    train(run, range(2, 4))
    save(run, Path(folder, "of two"))
    gathered = values(run)
    if rank == 0:
        torch.save(gathered, Path(folder, "of two.pt"))

    options, message = OTHERS[0]
    with pytest.raises(SavedStateError, match=message):
        load(sharded(1, **options), Path(folder, "of two"))
    dist.barrier()
    dist.destroy_process_group()
