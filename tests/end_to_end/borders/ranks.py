"""What the ranks of test_ranks.py do: train a model in parts, sharded, and compare with one process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from tests.end_to_end.guarded_model import EAGER, WIDTH, Net, by_hand, prepared

STEPS = 5


def batch(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64)


def trained_alone(size: int) -> list[float]:
    """The losses of one process on the batches of all ranks, by the equations in eager."""
    model = prepared(batch(0, 0))
    optimizer = torch.optim.SGD(ac.param_groups(model, lr=0.05, weight_decay=0.1))
    losses = []
    with ac.plain(model):
        for step in range(STEPS):
            loss = sum(by_hand(model, batch(rank, step)).square().mean() for rank in range(size)) / size
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def per_block(model: Net) -> None:
    for block in model.body.blocks:
        block.compile(backend="attnres", options=EAGER)


def whole(model: Net) -> None:
    model.compile(backend="attnres", options=EAGER)


def shard(model: Net, **options: object) -> None:
    for block in model.body.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)


def fsdp_then_compile(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    shard(model)
    compile_model(model)
    return model


def compile_then_fsdp(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    compile_model(model)
    shard(model)
    return model


def hsdp(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    shard(model, mesh=init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicas", "shards")))
    compile_model(model)
    return model


def ddp(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    compile_model(model)
    return DistributedDataParallel(model)


def checkpointed_fsdp(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    """The stack of torchtitan: a checkpoint around each layer, each compiled, each sharded."""
    compile_model(model)
    for block in model.body.blocks:
        compiled = block._compiled_call_impl
        if compiled is not None:
            block._compiled_call_impl = lambda *args, call=compiled: checkpoint(call, *args, use_reentrant=False)
    shard(model)
    return model


def split_layers(model: Net, mesh: DeviceMesh) -> None:
    """The first matrix of each MLP by its outputs, the second by its inputs."""
    for block in model.body.blocks:
        parallelize_module(block, mesh, {"mlp.0": ColwiseParallel(), "mlp.2": RowwiseParallel()})


def tp(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    split_layers(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    compile_model(model)
    return model


def checkpointed_tp(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    tp(model, compile_model)
    for block in model.body.blocks:
        block._compiled_call_impl = functools.partial(checkpoint, block._compiled_call_impl, use_reentrant=False)
    return model


def fsdp_tp(model: Net, compile_model: Callable[[Net], None]) -> nn.Module:
    """Two ranks share the layers of one batch, and two such pairs all parameters."""
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "model"))
    split_layers(model, mesh["model"])
    shard(model, mesh=mesh["data"])
    compile_model(model)
    return model


WAYS = {
    way.__name__: way
    for way in (fsdp_then_compile, compile_then_fsdp, hsdp, ddp, checkpointed_fsdp, tp, checkpointed_tp, fsdp_tp)
}
COMPILED = {"per_block": per_block, "whole": whole}


def batches(way: str, size: int) -> int:
    """How many different batches the ranks have: those that split the layers have one together."""
    return {"tp": 1, "checkpointed_tp": 1, "fsdp_tp": size // 2}.get(way, size)


def train(rank: int, size: int, store: str, cells: list[tuple[str, str]]) -> None:
    """Five steps in each of several ways, with the losses of one process."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for way, compiled in cells:
        torch.compiler.reset()
        count = batches(way, size)
        wanted = trained_alone(count)
        model = prepared(batch(0, 0))
        wrapped = WAYS[way](model, COMPILED[compiled])
        # Sharded parameters and whole ones do not go through one operator.
        optimizer = torch.optim.SGD(ac.param_groups(model, lr=0.05, weight_decay=0.1), foreach=False)
        for step in range(STEPS):
            loss = wrapped(batch(rank * count // size, step)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            assert abs(float(mean) / size - wanted[step]) < 1e-9, (way, compiled, step)
        status = ac.status(model)
        assert status.state == "rewritten", (way, compiled, status)
        assert status.rewritten_calls == STEPS, (way, compiled, status)
    dist.destroy_process_group()
