"""Models for the tests of norms behind reads: PreNorm stacks whose norms are written in any way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.norms.norm_behind import Norm, NotFused, norms_behind
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.rewrite.rewrite import rewrite
from tests.passes.helpers import captured, sample

NO_NORM = "no norm follows"
WIDTH = 8
Function = Callable[["Written", Tensor], Tensor]


class Written(nn.Module):
    """A norm, or what is none, as a function; with two vectors and a matrix to use."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(WIDTH))
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Stack(nn.Module):
    """PreNorm sublayers, each behind its own norm."""

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)
        self.linear = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in norms)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        for norm, linear in zip(self.norms, self.linear, strict=True):
            x = x + linear(norm(x))
        return self.norms[-1](x)


@dataclasses.dataclass
class Found:
    """A rewritten model and what the pass says of it."""

    gm: GraphModule
    plan: Plan
    inputs: tuple[Any, ...]

    def verdicts(self) -> list[Norm | NotFused]:
        return list(norms_behind(self.gm, self.plan).values())

    def norms(self) -> list[Norm]:
        verdicts = self.verdicts()
        assert verdicts
        assert all(isinstance(verdict, Norm) for verdict in verdicts), verdicts
        return verdicts

    def node(self, name: str) -> Node:
        """The only node whose target ends with `name`."""
        (node,) = [node for node in self.gm.graph.nodes if target_of(node).split(".")[-1] == name]
        return node


def rewritten_model(model: nn.Module, *args: Any, normed: bool = False) -> Found:
    """The rewritten graph of a model. normed: whether to say of every read that it is normed."""
    graph = captured(model, *args)
    analysis = find_streams(trace_aten(graph.gm), AttnResConfig(block_size=1, allow_unnormed=normed))
    assert analysis.plan.streams, analysis.plan
    result, plan = rewrite(graph.gm, analysis), analysis.plan
    if normed:
        streams = tuple(
            dataclasses.replace(stream, reads=tuple(dataclasses.replace(read, normed=True) for read in stream.reads))
            for stream in plan.streams
        )
        plan = dataclasses.replace(plan, streams=streams)
    parameters = [torch.randn(plan.streams[one.read.stream].width) for one in result.parameters]
    return Found(result.gm, plan, (*graph.inputs, *parameters))


def stacked(norm: Callable[[], nn.Module], dtype: torch.dtype = torch.float32, normed: bool = False) -> Found:
    """Three sublayers, each behind a norm; `norm` makes one."""
    torch.manual_seed(0)
    model = Stack(norm(), norm(), norm()).to(dtype)
    return rewritten_model(model, sample(4, 5, WIDTH).to(dtype), normed=normed)


def written(function: Function, dtype: torch.dtype = torch.float32, normed: bool = True) -> Found:
    return stacked(lambda: Written(function), dtype, normed)


def target_of(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def named(node: Node | None) -> str | None:
    return None if node is None else "weight" if "weight" in node.name else "bias" if "bias" in node.name else node.name


def assert_holds(found: Found, tolerance: float) -> None:
    """Every norm gives, on the values of the graph itself, what torch's own functions give."""
    values = Interpreter(found.gm, garbage_collect_values=False)
    values.run(*found.inputs)
    norms = norms_behind(found.gm, found.plan)
    assert norms
    for read, norm in norms.items():
        assert isinstance(norm, Norm), norm
        x, result = (values.env[node].double() for node in (read, norm.output))
        weight, bias = (None if v is None else values.env[v].double() for v in (norm.weight, norm.bias))
        shape = x.shape[-1:]
        if norm.kind == "layer":
            expected = F.layer_norm(x, shape, weight, bias, norm.eps)
        else:
            expected = F.rms_norm(x, shape, weight, norm.eps) + (0.0 if bias is None else bias)
        torch.testing.assert_close(result, expected, rtol=0.0, atol=tolerance * float(expected.abs().max()))


def root_mean_square(x: Tensor) -> Tensor:
    return x * (x * x).mean(-1, keepdim=True).rsqrt()


def unwidened(self: Written, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight


def llama(self: Written, x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return self.weight * wide.to(x.dtype)


def dropped(self: Written, x: Tensor) -> Tensor:
    return F.layer_norm(F.dropout(x, 0.5), (WIDTH,))


def spread(x: Tensor, correction: int = 0) -> Tensor:
    return x.var(-1, correction=correction, keepdim=True)
