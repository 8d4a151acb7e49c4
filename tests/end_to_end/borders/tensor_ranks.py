"""What the ranks of test_tensor_parallel.py do: share the layers of one model, and compare every gradient."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import SequenceParallel
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from tests.end_to_end.borders import titan
from tests.end_to_end.guarded_model import randomize

PLANS: dict[str, Callable[[nn.Module, DeviceMesh], None]] = {
    "tensor": titan.tensor_parallel,
    "sequence": titan.sequence_parallel,
    "sequence, DTensor stream": functools.partial(titan.sequence_parallel, local=False),
}
SPREAD = "queries spread"
"""The parameters of the reads are DTensors too, by the same plan."""


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
    more: dict[str, Any] = {"attnres": SequenceParallel()} if SPREAD in words else {}
    if "prepared after" not in words:
        titan.prepare(model)
        randomize(model)
    PLANS[plan](model, mesh, **more)
    if "prepared after" in words:
        titan.prepare(model)
        randomize(model)
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
