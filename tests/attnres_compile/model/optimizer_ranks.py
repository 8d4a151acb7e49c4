"""Two ranks that train one prepared model, for ``test_optimizer_ranks``."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter, FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

import attnres_compile as ac
from attnres_compile.model import errors
from attnres_compile.model.in_force.calls import Calls
from tests.end_to_end.models import PreNorm, tokens

OPTIONS = {"inner": "eager"}
TIMEOUT = datetime.timedelta(minutes=5)

Wrapped = tuple[nn.Module, Callable[..., Optimizer]]


def ddp(model: nn.Module) -> Wrapped:
    model.compile(backend="attnres", options=OPTIONS)
    return DistributedDataParallel(model), SGD


def zero(model: nn.Module) -> Wrapped:
    def optimizer(parameters: list[nn.Parameter], lr: float) -> Optimizer:
        return ZeroRedundancyOptimizer(parameters, optimizer_class=SGD, lr=lr)

    return ddp(model)[0], optimizer


def fsdp2(model: nn.Module) -> Wrapped:
    fully_shard(model)
    model.compile(backend="attnres", options=OPTIONS)
    return model, SGD


def fsdp1(model: nn.Module) -> Wrapped:
    model.compile(backend="attnres", options=OPTIONS)
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True), SGD


def fsdp1_flat(model: nn.Module) -> Wrapped:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=False), SGD


KINDS = {made.__name__: made for made in (ddp, zero, fsdp2, fsdp1, fsdp1_flat)}


def train(rank: int, size: int, store: str, kind: str) -> None:
    """Each rank raises where the others do, and none waits for another in vain."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        for check in (without_the_parameters, after_a_plain_run):
            check(KINDS[kind], tokens(batch=4)[rank::size])
            dist.barrier()
    finally:
        dist.destroy_process_group()


def prepared() -> PreNorm:
    torch.manual_seed(0)
    model = PreNorm()
    ac.prepare(model, (tokens(),), block_size=1)
    return model


def after_a_plain_run(wrap: Callable[[nn.Module], Wrapped], ids: Tensor) -> None:
    """Steps that are in order, then one after a plain run, and one after a run that is in order again."""
    model = prepared()
    calls = model.attnres.calls
    wrapped, make = wrap(model)
    optimizer = make(list(wrapped.parameters()), lr=0.1)
    for _ in range(3):
        run(wrapped, ids, calls)
        optimizer.step()
        optimizer.step()  # with gradients of no new run, which not every rank has for the AttnRes parameters
    run(wrapped, ids, calls)
    calls.plain += 1
    for _ in range(2):
        with pytest.raises(errors.OptimizerError, match="has run plain since the last step"):
            optimizer.step()
    run(wrapped, ids, calls)
    optimizer.step()


def without_the_parameters(wrap: Callable[[nn.Module], Wrapped], ids: Tensor) -> None:
    """An optimizer of all others, and one of a matrix that some rank has no part of."""
    if wrap is fsdp1_flat:
        return  # whose one parameter holds all
    model = prepared()
    calls = model.attnres.calls
    wrapped, make = wrap(model)
    own = set(map(id, model.attnres.parameters()))
    others = [parameter for parameter in wrapped.parameters() if id(parameter) not in own]
    run(wrapped, ids, calls)
    with pytest.raises(errors.OptimizerError, match="without its 6 AttnRes parameters"):
        make(others, lr=0.1).step()
    if wrap is zero:
        return  # which gives every rank a parameter or more
    first = next(parameter for parameter in others if parameter.ndim == 2 or wrap is fsdp1)
    if wrap is fsdp1:
        assert bool(first.numel()) == (dist.get_rank() == 0)
    optimizer = make([first], lr=0.1)
    optimizer.step()
    run(wrapped, ids, calls)
    with pytest.raises(errors.OptimizerError, match="without its 6 AttnRes parameters"):
        optimizer.step()
    calls.plain += 1
    with pytest.raises(errors.OptimizerError, match="has run plain since the last step"):
        optimizer.step()


def run(wrapped: nn.Module, ids: Tensor, calls: Calls) -> None:
    """Forward and backward. Dynamo compiles no module with a FlatParameter: there, what they leave is made by hand."""
    wrapped.zero_grad()
    before = calls.rewritten
    if any(isinstance(parameter, FlatParameter) for parameter in wrapped.parameters()):
        calls.rewritten += 1
        for parameter in wrapped.parameters():
            parameter.grad = torch.ones_like(parameter)
    else:
        wrapped(ids).square().sum().backward()
    assert calls.rewritten == before + 1
