"""What the ranks of test_tensor_parallel.py do: share the layers of one model, and compare every gradient."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_module
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from tests.end_to_end.borders import models, titan
from tests.end_to_end.guarded_model import randomize

PLANS: dict[str, Callable[[nn.Module, DeviceMesh], None]] = {
    "tensor": titan.tensor_parallel,
    "sequence": titan.sequence_parallel,
    "sequence, DTensor stream": functools.partial(titan.sequence_parallel, local=False),
}
SPREAD = "queries spread"
"""The parameters of the reads are DTensors too, whole on every rank."""


def begin(rank: int, size: int, store: str) -> DeviceMesh:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    return init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(one.grad) for name, one in model.named_parameters() if one.grad is not None}


def expected() -> tuple[Tensor, dict[str, Tensor]]:
    """By the equations, on one process."""
    model, tokens = titan.prepared(), titan.ids()
    with ac.plain(model):
        loss = titan.loss_of(titan.by_hand(model, tokens), tokens)
    loss.backward()
    return loss.detach(), gradients(model)


def made(mesh: DeviceMesh, plan: str, words: set[str]) -> nn.Module:
    model = titan.build()
    if "prepared after" not in words:
        titan.prepare(model)
        randomize(model)
    PLANS[plan](model, mesh)
    if "prepared after" in words:
        titan.prepare(model)
        randomize(model)
    if SPREAD in words:
        distribute_module(model.attnres, mesh)
    options = {"inner": next((one for one in ("aot_eager", "inductor") if one in words), "eager")}
    if "per layer" in words:
        for layer in model.layers.values():
            layer.compile(backend="attnres", options=options)
            if "checkpoint" in words:
                layer._compiled_call_impl = functools.partial(
                    checkpoint, layer._compiled_call_impl, use_reentrant=False
                )
    else:
        model.compile(backend="attnres", options=options, fullgraph=True)
    return model


def compare(rank: int, size: int, store: str, cells: list[tuple[str, ...]]) -> None:
    """Loss and every gradient of each cell: a plan, and what else holds."""
    mesh = begin(rank, size, store)
    wanted = expected()
    for plan, *words in cells:
        torch.compiler.reset()
        model = made(mesh, plan, set(words))
        for _ in range(2):  # what was compiled is used again
            check(model, wanted, (plan, *words))
        assert ac.status(model).state == "rewritten", (plan, *words)
    dist.destroy_process_group()


def check(model: nn.Module, wanted: tuple[Tensor, dict[str, Tensor]], cell: tuple[str, ...]) -> None:
    """Compare one step of a model with what is wanted of it. cell: what it is."""
    tokens = titan.ids()
    model.zero_grad()
    loss = titan.loss_of(model(tokens), tokens)
    loss.backward()
    torch.testing.assert_close(loss.detach(), wanted[0], atol=1e-12, rtol=0, msg=lambda text: f"{cell}: {text}")
    found = gradients(model)
    assert found.keys() == wanted[1].keys(), cell
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-10, rtol=0, msg=lambda text, name=name: f"{cell} {name}: {text}"
        )


def around(rank: int, size: int, store: str, folder: str) -> None:
    """What is asked of a model besides training it: verify, save and load, clipping, optimizers, transformers' plan."""
    mesh = begin(rank, size, store)
    tokens = titan.ids()
    for plan in ("sequence", "sequence, DTensor stream"):
        model = made(mesh, plan, {SPREAD})
        verification = ac.verify(model, (tokens,))
        assert verification.passed, f"{plan}\n{verification}"
        kept = {name: whole(one).clone() for name, one in model.attnres.named_parameters()}
        ac.save(model, folder)
        dist.barrier()
        with torch.no_grad():
            for one in model.attnres.parameters():
                one.zero_()
        ac.load(model, folder)
        for name, one in model.attnres.named_parameters():
            torch.testing.assert_close(whole(one), kept[name], atol=0, rtol=0)
        optimizer = torch.optim.AdamW(ac.param_groups(model, lr=0.01, weight_decay=0.1), foreach=True)
        titan.loss_of(model(tokens), tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        assert float(whole(norm)) > 1e-3
        dist.barrier()
    dist.destroy_process_group()


def of_transformers(rank: int, size: int, store: str, folder: str, cells: list[tuple[str, str]]) -> None:
    """Models of transformers under its own plan of tensor parallelism, loaded from a folder, against one process."""
    from transformers.distributed import DistributedConfig

    begin(rank, size, store)
    for name, compiled in cells:
        torch.compiler.reset()
        path = Path(folder, name)
        alone = models.plain(name)
        if rank == 0:
            alone.save_pretrained(path)
        dist.barrier()
        alone.load_state_dict(type(alone).from_pretrained(path, dtype=torch.float64).state_dict())
        shared = type(alone).from_pretrained(path, dtype=torch.float64, distributed_config=DistributedConfig(tp_size=2))
        found = []
        for model in (alone, shared.train()):
            ac.prepare(model, (), {"input_ids": models.IDS}, num_blocks=2, inner="eager")
            randomize(model)
            found.append(models.step({"whole": models.whole, "per layer": models.per_block}[compiled](model)))
        models.assert_same((whole(found[1][0]), {key: whole(one) for key, one in found[1][1].items()}), found[0])
        assert any(isinstance(one, DTensor) for one in shared.parameters())
    dist.destroy_process_group()
