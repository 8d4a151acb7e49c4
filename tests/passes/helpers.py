"""Capture, analysis and execution of small modules, for the tests of this folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from attnres_compile.capture.capture import capture
from attnres_compile.capture.pieces import Captured
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Candidate, find_chains
from attnres_passes.analyses.reads import StreamReads, find_reads
from attnres_passes.analyses.streams import Analysis, find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.levels import Level
from attnres_passes.ir.plan import Decline, Stream
from attnres_passes.lower.lower import lower
from attnres_passes.rewrite.rewrite import Rewritten, rewrite
from attnres_passes.schedule.fuse import fuse
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.schedule import schedule

WIDTH = 8


class Function(nn.Module):
    """A module whose forward is `function(self, *args)`, with linear layers and norms to use."""

    def __init__(self, function: Callable[..., Any], layers: int = 3, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.function = function
        self.linear = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(layers + 1))
        self.double()

    def forward(self, *args: Tensor) -> Any:
        return self.function(self, *args)


def sample(*shape: int, seed: int = 1) -> Tensor:
    """A random fp64 tensor, `[2, 3, WIDTH]` unless a shape is given."""
    return torch.randn(shape or (2, 3, WIDTH), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def captured(function: Callable[..., Any] | nn.Module, *args: Tensor, layers: int = 3) -> Captured:
    """The one graph of a module, or of a function of a `Function` module and `args` (`sample()` if none)."""
    model = function if isinstance(function, nn.Module) else Function(function, layers)
    graphs = capture(model, args or (sample(),), None).graphs
    assert len(graphs) == 1
    return graphs[0]


def traced(function: Callable[..., Any] | nn.Module, *args: Tensor, layers: int = 3) -> AtenTrace:
    return trace_aten(captured(function, *args, layers=layers).gm)


def chains_of(
    function: Callable[..., Any] | nn.Module, *args: Tensor, layers: int = 3
) -> tuple[AtenTrace, tuple[Candidate, ...]]:
    trace = traced(function, *args, layers=layers)
    return trace, find_chains(trace)


def longest(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=lambda candidate: len(candidate.additions))


def reads_of(function: Callable[..., Any] | nn.Module, *args: Tensor, layers: int = 3) -> tuple[AtenTrace, StreamReads]:
    """Reads of the longest chain, judged beside all other chains of two additions or more."""
    trace, candidates = chains_of(function, *args, layers=layers)
    chain = longest(candidates)
    others = {
        addition.op
        for other in candidates
        if other is not chain and len(other.additions) > 1
        for addition in other.additions
    }
    return trace, find_reads(trace, chain, frozenset(others))


def analysed(
    function: Callable[..., Any] | nn.Module, *args: Tensor, layers: int = 3, **options: Any
) -> tuple[Captured, Analysis]:
    found = captured(function, *args, layers=layers)
    return found, find_streams(trace_aten(found.gm), AttnResConfig(**options))


def only_stream(analysis: Analysis) -> Stream:
    (stream,) = analysis.plan.streams
    return stream


def only_decline(analysis: Analysis) -> Decline:
    """The only decline of a model without streams."""
    assert analysis.plan.streams == (), analysis.plan
    (decline,) = analysis.plan.declined
    return decline


def rewritten(
    function: Callable[..., Any] | nn.Module, *args: Tensor, layers: int = 3, **options: Any
) -> tuple[Captured, Analysis, Rewritten]:
    found, analysis = analysed(function, *args, layers=layers, **options)
    assert analysis.plan.streams, analysis.plan
    return found, analysis, rewrite(found.gm, analysis)


def levels_of(gm: GraphModule, analysis: Analysis, provider: Provider = Provider.TORCH) -> dict[Level, GraphModule]:
    """The graph of each level, from a captured one."""
    plan = analysis.plan
    result = rewrite(gm, analysis).gm
    scheduled = schedule(result, plan, ProviderChoice.of(plan, provider)).gm
    if provider is Provider.TRITON:
        scheduled = fuse(scheduled, plan).gm
    lowered = lower(scheduled, plan, provider)
    return {Level.CAPTURED: gm, Level.REWRITTEN: result, Level.SCHEDULED: scheduled, Level.LOWERED: lowered}


def added_parameters(result: Rewritten, analysis: Analysis, seed: int | None = None) -> list[Tensor]:
    """Values of the appended placeholders: zero queries and unit weights, or random ones for a seed."""
    generator = torch.Generator().manual_seed(seed or 0)
    values = []
    for parameter in result.parameters:
        width = analysis.plan.streams[parameter.read.stream].width
        noise = torch.randn(width, generator=generator, dtype=torch.float64)
        offset = 1.0 if parameter.name == "key_weight" else 0.0
        spread = 0.0 if seed is None else 0.3 if parameter.name == "key_weight" else 1.0
        values.append((offset + spread * noise).requires_grad_())
    return values


def fresh_inputs(found: Captured) -> list[Any]:
    """The inputs of a graph, cloned, with floating ones as leaves that require a gradient."""
    return [
        value.detach().clone().requires_grad_(value.is_floating_point()) if isinstance(value, Tensor) else value
        for value in found.inputs
    ]


def run(gm: GraphModule, inputs: Sequence[Any], seed: int = 0) -> list[Tensor]:
    """Tensor outputs of one execution under a fixed random state."""
    torch.manual_seed(seed)
    return [value for value in gm(*inputs) if isinstance(value, Tensor)]


def run_with_gradients(
    gm: GraphModule, inputs: Sequence[Any], added: Sequence[Tensor] = ()
) -> tuple[list[Tensor], list[Tensor | None], list[Tensor | None]]:
    """Outputs, and gradients of a fixed function of them in the inputs and in the added parameters."""
    leaves = [value.detach().clone().requires_grad_() for value in added]
    outputs = run(gm, [*inputs, *leaves])
    differentiable = [output for output in outputs if output.requires_grad]
    wanted = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    loss = sum(((output - 0.3) ** 3).sum() for output in differentiable)
    gradients = torch.autograd.grad(loss, [*wanted, *leaves], allow_unused=True)
    return outputs, list(gradients[: len(wanted)]), list(gradients[len(wanted) :])


def assert_same(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float) -> None:
    """Equal up to `tolerance` relative to the largest element; an absent gradient equals zeros."""
    assert len(actual) == len(expected)
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        if one is None or other is None:
            rest = one if other is None else other
            assert rest is None or not rest.any(), f"value {index} is missing on one side"
            continue
        assert one.shape == other.shape, f"value {index}"
        assert one.dtype == other.dtype, f"value {index}"
        largest = other.abs().max().clamp_min(1.0)
        error = float(((one - other).abs().max() / largest).detach())
        assert error <= tolerance, f"value {index} differs by {error:.1e}"


def line_of(function: Callable[..., Any], marker: str) -> int:
    """Number of the only line of a function's source that holds `marker`."""
    lines, first = inspect.getsourcelines(function)
    (offset,) = [index for index, line in enumerate(lines) if marker in line]
    return first + offset


class Backend:
    """A compiler that changes nothing: it calls `look` on each graph, keeps what that returns, and counts."""

    def __init__(self, look: Callable[[GraphModule], Any] = lambda gm: None) -> None:
        self.look = look
        self.seen: list[Any] = []

    def __call__(self, gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.seen.append(self.look(gm))
        return gm.forward


def seen_by(look: Callable[[GraphModule], Any], model: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """What `look` says of each graph of one call."""
    backend = Backend(look)
    torch.compile(model, backend=backend, **options)(*args)
    return backend.seen


class Part(nn.Module):
    """A model of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def double(x: Tensor) -> Tensor:
    return 2 * x


def placeholders(gm: GraphModule) -> list[Node]:
    """The placeholders of a graph, in order."""
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def randomised(model: nn.Module) -> list[nn.Parameter]:
    """The AttnRes parameters of a prepared model, moved away from their first values."""
    torch.manual_seed(5)
    added = list(model.attnres.parameters())
    with torch.no_grad():
        for parameter in added:
            parameter.add_(torch.randn_like(parameter))
    return added
