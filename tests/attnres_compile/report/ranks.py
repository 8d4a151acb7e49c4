"""What the ranks of test_setting.py do: train a step, sharded, and hold torch's collectives to what is counted."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from attnres_compile.report.counting.checkpoints import count_setting
from attnres_compile.report.counting.model_counts import Lengths, model_graphs
from attnres_compile.report.counting.sharding import added_parameters, sharded
from attnres_compile.report.parallel import Parallel
from attnres_passes.ir.config import AttnResConfig
from tests.attnres_compile.report.models import Layered

WIDTH, HIDDEN, LAYERS, TOKENS = 5, 6, 2, 3
"""An odd width, so that parts are padded."""
BYTES = 4
SPLIT = {
    f"mlps.{k}.{part}": style for k in range(2) for part, style in ((0, ColwiseParallel()), (2, RowwiseParallel()))
}
CASES = [(is_prepared, checkpointed) for is_prepared in (False, True) for checkpointed in (False, True)]


def compare(rank: int, size: int, store: str) -> None:
    """Collectives of a plain and of a prepared model, its layers checkpointed and not, FSDP2 and tensor parallel."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    for is_prepared, checkpointed in CASES:
        compare_fsdp(x, size, is_prepared, checkpointed)
        compare_tensor_parallel(x, size, is_prepared, checkpointed)
    dist.destroy_process_group()


def compare_fsdp(x: Tensor, size: int, is_prepared: bool, checkpointed: bool) -> None:
    """What a rank of a ring sends: of each collective the whole, but for the rank's own part."""
    plain = model_of("none")
    parameters = list(plain.named_parameters())
    if is_prepared:
        plan = model_graphs(plain, (x,), {}, AttnResConfig(num_blocks=2)).count(Lengths(), with_model=False).plan
        parameters += added_parameters(plan, plain)
    found = sharded(parameters, [f"layers.{number}" for number in range(LAYERS)], size)
    model = made(x, is_prepared, checkpointed)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    collectives = list(step(model, x))
    gathered = [shapes[0] for name, shapes in collectives if name == "c10d::_allgather_base_"]
    reduced = [shapes[1] for name, shapes in collectives if name == "c10d::_reduce_scatter_base_"]
    assert (found.gathers, found.reductions) == (len(gathered), len(reduced))
    for shapes, sent in ((gathered, found.gathered), (reduced, found.reduced)):
        assert sum(map(math.prod, shapes)) * BYTES * (size - 1) // size == sent, (is_prepared, checkpointed)
    kept = [(one.to_local(), one.grad.to_local()) for one in model.parameters()]
    padded = sum(math.ceil(one.shape[0] / size) * math.prod(one.shape[1:]) for _, one in parameters)
    assert found.kept == 4 * padded * BYTES
    # The last rank's parts are shorter than the others': what is padded is no parameter.
    assert sum(part.numel() + grad.numel() for part, grad in kept) <= 2 * padded


def compare_tensor_parallel(x: Tensor, size: int, is_prepared: bool, checkpointed: bool) -> None:
    """All-reduces; and that the gradients of queries and key norms need none."""
    graphs = model_graphs(model_of("none"), (x,), {}, AttnResConfig(num_blocks=2))
    setting = Parallel("layer" if checkpointed else "none", tp=size)
    found = count_setting(graphs, graphs.count(Lengths()), setting)
    side = found.attnres if is_prepared else found.plain
    total = side.summed[0] + side.summed[1] + found.gradients
    model = made(x, is_prepared, checkpointed, init_device_mesh("cpu", (size,)))
    summed = [math.prod(shapes[0]) for name, shapes in step(model, x) if name == "_c10d_functional::all_reduce"]
    assert (total.calls, total.bytes) == (len(summed), sum(summed) * BYTES), (is_prepared, checkpointed)
    if is_prepared:
        for name, parameter in model.attnres.named_parameters():
            parts = [torch.empty_like(parameter.grad) for _ in range(size)]
            dist.all_gather(parts, parameter.grad)
            assert parts[0].any(), name
            assert all(torch.equal(parts[0], part) for part in parts), name


def model_of(setting: str) -> Layered:
    torch.manual_seed(1)
    return Layered(WIDTH, HIDDEN, LAYERS, setting)


def made(x: Tensor, is_prepared: bool, checkpointed: bool, mesh: DeviceMesh | None = None) -> nn.Module:
    """A model as docs/parallel.md says: prepared, then split, then compiled layer by layer."""
    model = model_of("layer" if checkpointed and not is_prepared else "none")
    if is_prepared:
        ac.prepare(model, (x,), num_blocks=2)
        with torch.no_grad():
            for parameter in model.attnres.parameters():
                parameter.add_(torch.linspace(-1, 1, WIDTH))
    if mesh is not None:
        for layer in model.layers:
            parallelize_module(layer, mesh, SPLIT)
    if is_prepared:
        for layer in model.layers:
            layer.compile(backend="attnres", options={"inner": "eager"})
            if checkpointed:
                compiled = layer._compiled_call_impl
                layer._compiled_call_impl = functools.partial(checkpoint, compiled, use_reentrant=False)
    return model


def step(model: nn.Module, x: Tensor) -> Iterator[tuple[str, list[list[int]]]]:
    """The operators of a step, with the shapes that they are given; a first step has compiled and set up all."""
    model(x).square().sum().backward()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        model(x).square().sum().backward()
    for event in profiled.events():
        yield event.name, event.input_shapes
