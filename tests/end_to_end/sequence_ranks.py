"""Processes that run one model together, each on the whole sequence and with the blocks of its own tokens only."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional_collectives
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import attnres_compile as ac
from attnres_passes.torch_private import inner_compilers
from tests import processes
from tests.end_to_end.models import randomize


@dataclass(frozen=True)
class Case:
    """reduces: how sublayers sum over the ranks, "" for whole sublayers on every rank."""

    reduces: str = ""
    tokens: int = 32
    inner: str = "eager"
    schedule: str = "direct"
    sublayers: int = 7
    width: int = 8
    block_size: int = 1


CASES = {
    "whole sublayers": Case(),
    "summed out of place": Case("functional"),
    "summed in place": Case("in place"),
    "tokens that do not divide": Case("functional", tokens=27),
    "fewer tokens than ranks": Case(tokens=3),
    "phases, through autograd": Case("functional", tokens=27, inner="aot_eager", schedule="two_phase", block_size=3),
}
KEPT = ("whole sublayers", "summed out of place")
"""Cases for which it is measured what is kept: read by read, so that there is little beside the blocks."""

OF_SIZE = {2: tuple(CASES), 4: (*KEPT, "tokens that do not divide", "fewer tokens than ranks")}
"""What is run on so many ranks."""


@dataclass(frozen=True)
class Result:
    """error: from one process; changed: by the queries; kept_bytes: of all that is there behind the last read;
    collectives: those that ran, by name."""

    error: float
    changed: float
    kept_bytes: int
    collectives: dict[str, int]


class Sublayer(nn.Module):
    """A PreNorm MLP, of whose inner features a rank has its share if ``reduces`` says how the shares are summed."""

    def __init__(self, width: int, reduces: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.reduces = reduces

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        if not self.reduces:
            return x + self.down(functional.gelu(self.up(normed)))
        share = self.up.weight.shape[0] // dist.get_world_size()
        first = share * dist.get_rank()
        hidden = functional.gelu(functional.linear(normed, self.up.weight[first : first + share]))
        out = functional.linear(hidden, self.down.weight[:, first : first + share])
        if self.reduces == "functional":
            return x + functional_collectives.all_reduce(out, "sum", dist.group.WORLD)
        dist.all_reduce(out)
        return x + out


class Model(nn.Module):
    def __init__(self, case: Case, reduces: str) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(Sublayer(case.width, reduces) for _ in range(case.sublayers))
        self.norm = nn.LayerNorm(case.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        for sublayer in self.sublayers:
            x = sublayer(x)
        return self.norm(x)


class Watch(TorchDispatchMode):
    """Bytes of what was made under it and is still there when a read is gathered, and the collectives that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.kept = 0
        self.collectives: dict[str, int] = {}

    def _settled(self) -> int:
        """Bytes that stay: a thread of gloo's lets go of what it sent a moment after the collective is done."""
        found = []
        for _ in range(10):
            found.append(sum(size for storage, size in self.alive.values() if not storage.expired()))
            time.sleep(0.003)
        return min(found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name == "all_gather_into_tensor":
            self.kept = self._settled()
        if func.namespace == "_c10d_functional":
            self.collectives[name] = self.collectives.get(name, 0) + 1
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result


def run_case(case: Case) -> Result:
    alone = prepared(case, "")
    together = prepared(case, case.reduces)
    together.load_state_dict(alone.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, case.tokens, case.width, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        with ac.plain(alone):
            plain = alone.eval()(x)
        expected = compiled(alone, case)(x)
        watch = Watch()
        with watched_by(watch):
            found = compiled(together, case, sequence_group=dist.group.WORLD.group_name)(x)
    return Result(
        float((found - expected).abs().max()),
        float((expected - plain).abs().max()),
        watch.kept,
        watch.collectives,
    )


@contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Graphs compiled meanwhile run under ``watch``: outside of them, Dynamo takes no call under a dispatch mode."""
    compile_inner = inner_compilers.compile_inner

    def compile_watched(*args: Any) -> Any:
        inner = compile_inner(*args)

        def run(*inputs: Any) -> Any:
            with watch:
                return inner(*inputs)

        return run

    inner_compilers.compile_inner = compile_watched
    try:
        yield
    finally:
        inner_compilers.compile_inner = compile_inner


def prepared(case: Case, reduces: str) -> nn.Module:
    torch.manual_seed(0)
    model = Model(case, reduces).double()
    x = torch.zeros(1, case.tokens, case.width, dtype=torch.float64)
    with torch.no_grad():
        ac.prepare(model, (x,), block_size=case.block_size)
    randomize(model)
    return model


def compiled(model: nn.Module, case: Case, **options: Any) -> Any:
    torch._dynamo.reset()
    given = {"inner": case.inner, "schedule": case.schedule, **options}
    return torch.compile(model, backend="attnres", options=given, fullgraph=True, dynamic=False)


@cache
def run_ranks(size: int) -> list[dict[str, Result]]:
    """The results of each rank by the names of CASES."""
    with tempfile.TemporaryDirectory() as folder:
        processes.run_ranks(_rank, size, folder)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]
    return [{name: Result(**values) for name, values in results.items()} for results in found]


def _rank(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    results = {name: asdict(run_case(CASES[name])) for name in OF_SIZE[size]}
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
