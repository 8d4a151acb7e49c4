"""What the processes of the matrix do: train a model in some ways at once, and compare its losses with one process."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel
from torch.nn.parallel import DistributedDataParallel

import attnres_compile as ac
from tests.end_to_end.borders import titan

STEPS, RATE, ROWS = 5, 0.1, 4
DATA = {"FSDP2", "HSDP", "DDP"}
MODEL = {"TP", "SP"}
OPTIONS = {"inner": "eager"}
Step = Callable[[Tensor], Tensor | None]
"""Forward and backward of a batch; gives the loss where it is known."""


def train(rank: int, size: int, store: str, cell: str, result: str, by_torch: bool) -> None:
    """Five steps in the ways of a cell, or one of the plain model by torch alone.

    result: beginning of the file that a process writes what it found to.
    """
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    ways = set(cell.split("+"))
    try:
        run = torch_alone if by_torch else difference
        found: dict[str, object] = {"difference": run(ways, meshes(ways, size))}
    except Exception as error:  # what cannot be is in the record
        found = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"}
    Path(f"{result}.{rank}").write_text(json.dumps(found))
    # A process that failed by itself leaves the others waiting; the first file with an error is what counts.
    os._exit(0)


def meshes(ways: set[str], size: int) -> DeviceMesh:
    """The processes by what they share: stages of a pipeline, replicas or shards of the data, parts of a layer.

    A way that is alone has all processes; HSDP has two replicas, which are shards as well where processes are left.
    """
    stages = 1 if "PP" not in ways else (2 if ways & (DATA | MODEL) else size)
    parts = size // stages if not ways & DATA else 2 if ways & MODEL else 1
    data = size // stages // parts
    replicas = 2 if "HSDP" in ways or {"FSDP2", "DDP"} <= ways else data if "DDP" in ways else 1
    return init_device_mesh(
        "cpu",
        (stages, replicas, data // replicas, parts),
        mesh_dim_names=("stages", "replicas", "shards", "parts"),
    )


def difference(ways: set[str], mesh: DeviceMesh) -> float:
    """The largest difference of a loss from that of one process."""
    replicas, shards = mesh["replicas"].size(), mesh["shards"].size()
    data, place = replicas * shards, mesh["replicas"].get_local_rank() * shards + mesh["shards"].get_local_rank()
    wanted = alone(data)
    model = titan.prepared(torch.float32)
    if ways & MODEL:
        split(model, ways, mesh["parts"])
    if "checkpoint" in ways:
        for name, layer in model.layers.items():
            model.layers[name] = checkpoint_wrapper(layer)
    make = in_stages if "PP" in ways else in_one
    step, parameters, status = make(model, ways, mesh)
    optimizer = torch.optim.SGD(parameters, RATE, foreach=False)
    worst = 0.0
    for number in range(STEPS):
        optimizer.zero_grad()
        loss = step(titan.ids(place, number, ROWS))
        optimizer.step()
        # The mean over the processes that know it; those of one batch agree.
        known = torch.tensor([0.0 if loss is None else float(loss.detach()), float(loss is not None)])
        dist.all_reduce(known)
        worst = max(worst, abs(float(known[0] / known[1]) - wanted[number]))
    assert status() in ("rewritten", "pipeline"), status()
    return worst


def torch_alone(ways: set[str], mesh: DeviceMesh) -> float:
    """One step of the plain model, compiled by torch alone; whether that can be. Not for pipelines."""
    model = titan.build(torch.float32)
    if ways & MODEL:
        split(model, ways, mesh["parts"])
    model.compile(backend="eager")
    wrapped = shard(model, ways, mesh)
    tokens = titan.ids(0, 0, ROWS)
    titan.loss_of(wrapped(tokens), tokens).backward()
    torch.optim.SGD(wrapped.parameters(), RATE, foreach=False).step()
    return 0.0


def alone(data: int) -> list[float]:
    """The losses of one process on the batches of all, by the equations in eager."""
    model = titan.prepared(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    losses = []
    with ac.plain(model):
        for step in range(STEPS):
            batches = [titan.ids(place, step, ROWS) for place in range(data)]
            loss = sum(titan.loss_of(titan.by_hand(model, batch), batch) for batch in batches) / data
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def split(model: nn.Module, ways: set[str], mesh: DeviceMesh) -> None:
    """The layers, by the plan of torchtitan.

    FSDP's hooks end the first graph of a model that is compiled as a whole behind the embedding; torch 2.13 cannot
    compile one that is split by vocabulary without the sum behind it.
    """
    is_cut = "SP" in ways
    by_features = ColwiseParallel(output_layouts=Shard(1) if is_cut else Replicate())
    more = {"tok_embeddings": by_features} if ways & DATA else {}
    (titan.sequence_parallel if is_cut else titan.tensor_parallel)(model, mesh, **more)


def shard(module: nn.Module, ways: set[str], mesh: DeviceMesh) -> nn.Module:
    """One replica or shard of the data."""
    names = {"FSDP2": "shards", "HSDP": ("replicas", "shards")}
    for way, name in names.items():
        if way in ways:
            for layer in module.layers.values() if isinstance(module, titan.Titan) else ():
                fully_shard(layer, mesh=mesh[name])
            fully_shard(module, mesh=mesh[name])
    if "DDP" in ways:
        return DistributedDataParallel(module, process_group=mesh.get_group("replicas"))
    return module


def in_one(model: nn.Module, ways: set[str], mesh: DeviceMesh) -> tuple[Step, list[nn.Parameter], Callable[[], str]]:
    """Every process has all layers, or its part of each."""
    if "per layer" in ways:
        for layer in model.layers.values():
            layer.compile(backend="attnres", options=OPTIONS)
    else:
        model.compile(backend="attnres", options=OPTIONS)
    wrapped = shard(model, ways, mesh)

    def step(tokens: Tensor) -> Tensor:
        loss = titan.loss_of(wrapped(tokens), tokens)
        loss.backward()
        return loss

    return step, list(wrapped.parameters()), lambda: ac.status(model).state


def in_stages(model: nn.Module, ways: set[str], mesh: DeviceMesh) -> tuple[Step, list[nn.Parameter], Callable[[], str]]:
    """Every process has some layers, or its part of some."""
    if "per layer" in ways:
        for layer in model.layers.values():
            layer.compile(backend="attnres", options=OPTIONS)
    pipe = ac.pipeline(
        model,
        (titan.ids(rows=ROWS),),
        schedule="1F1B",
        microbatches=ROWS,
        loss_fn=titan.loss_of,
        group=mesh.get_group("stages"),
        wrap=functools.partial(shard, ways=ways, mesh=mesh),
    )

    def step(tokens: Tensor) -> Tensor | None:
        losses: list[Tensor] = []
        pipe.step(tokens, target=tokens, losses=losses)
        return torch.stack(losses).mean() if losses else None

    parameters = [one for stage in pipe.stages for one in stage.submod.parameters()]
    return step, parameters, lambda: "pipeline"
