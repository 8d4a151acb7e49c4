"""Who runs a function: the backend that traces it, or Python and why."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from attnres_passes.torch_private import frames
from attnres_passes.torch_private.frames import Around, Tracer

X = torch.randn(2, 3)


def plain(gm: GraphModule, inputs: list[Any]) -> Any:
    return gm.forward


@frames.mark_as_backend
def ours(gm: GraphModule, inputs: list[Any]) -> Any:
    return gm.forward


class Model(nn.Module):
    """Keeps who traced it, and what was around it where Python ran it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.breaks = False

    def forward(self, x: Tensor) -> Tensor:
        for _ in (0,):
            if torch.compiler.is_dynamo_compiling():
                seen(self)
            else:
                SEEN.append(frames.dynamo_around())
            if self.breaks:
                frames.graph_break()
        return self.linear(x)


SEEN: list[Any] = []


@frames.seen_while_tracing
def seen(module: nn.Module) -> None:
    SEEN.append(frames.tracer())


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


@pytest.mark.parametrize(
    ("backend", "is_ours"),
    [
        (ours, True),
        (plain, False),
        ("eager", False),
        (functools.partial(ours), True),
        (functools.wraps(ours)(lambda gm, inputs: gm.forward), True),
        (lambda gm, inputs: ours(gm, inputs), False),
    ],
)
def test_the_backend_that_traces(backend: Any, is_ours: bool) -> None:
    model = Model()
    torch.compile(model, backend=backend)(X)
    (tracer,) = SEEN
    assert isinstance(tracer, Tracer)
    assert tracer.is_ours == is_ours
    assert tracer.module is model
    assert not tracer.must_be_whole


def test_a_function_around_that_must_be_whole() -> None:
    model = Model()
    torch.compile(lambda x: model(x), backend=plain, fullgraph=True)(X)
    (tracer,) = SEEN
    assert tracer.module is None
    assert tracer.must_be_whole
    assert tracer.code.co_name == "<lambda>"
    assert tracer.backend == "plain"


def test_modules_are_guarded_by_identity() -> None:
    step = torch.compile(lambda model, x: model(x), backend=plain)
    models = Model(), Model()
    for model in (*models, *models):
        step(model, X)
    assert len(SEEN) == 2


def test_what_dynamo_does_around_python() -> None:
    model = Model()
    model(X)
    model.breaks = True
    torch.compile(model, backend=plain)(X)
    # Traced up to the break, and then left to Python.
    assert [one for one in SEEN if isinstance(one, Around)] == [Around.NOTHING, Around.COMPILES]


def test_the_recompile_limit_and_the_guard_that_failed() -> None:
    found: list[Any] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word = ""

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_dynamo_compiling():
                found.append((frames.dynamo_around(), frames.recompile_limit_hit([Counting.forward.__code__])))
            return x * len(self.word)

    model = Counting()
    step = torch.compile(model, backend=plain)
    limit = frames.recompile_limit()
    for count in range(limit + 1):
        model.word = "a" * count
        step(X)
        kept = frames.graphs_against_limit(Counting.forward.__code__, {"self": model})
        assert kept == min(count + 1, limit)
    ((around, hit),) = found
    assert around is Around.CACHED_ONLY
    assert hit is not None
    assert (hit.graphs, hit.limit) == (limit, "recompile_limit")
    assert "word == " in hit.guard


def test_stance_and_switch() -> None:
    assert (frames.stance(), frames.is_disabled()) == ("default", False)
    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(disable=True):
        assert (frames.stance(), frames.is_disabled()) == ("force_eager", True)


def test_other_tracers() -> None:
    found: list[str] = []

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found.append(frames.outside_tracer())
            return x + 1

    model = Asking()
    model(X)
    torch.func.vmap(model)(X)
    torch.export.export(model, (X,), strict=False)
    torch.jit.trace(model, (X,))
    torch.fx.symbolic_trace(model)
    assert set(found) == {"", "torch.func", "torch.export", "torch.jit.trace", "torch.fx.symbolic_trace"}


def test_functions_that_python_runs_and_that_are_tried_again() -> None:
    graphs: list[GraphModule] = []

    def counting(gm: GraphModule, inputs: list[Any]) -> Any:
        graphs.append(gm)
        return gm.forward

    def inner(x: Tensor) -> Tensor:
        return x + 1

    def outer(x: Tensor) -> Tensor:
        return inner(x) * 2

    frames.leave_to_python(outer.__code__)
    torch.compile(outer, backend=counting)(X)
    assert [len(gm.graph.find_nodes(op="call_function", target=torch.mul)) for gm in graphs] == [0]
    frames.try_again(outer.__code__)
    torch.compile(outer, backend=counting)(X)
    assert len(graphs) == 2


def test_what_is_never_traced() -> None:
    traced: list[bool] = []
    quiet = frames.never_traced(lambda: traced.append(torch.compiler.is_compiling()))

    def step(x: Tensor) -> Tensor:
        quiet()
        return x + 1

    torch.compile(step, backend=plain)(X)
    assert traced == [False]


def test_notes_for_the_backend() -> None:
    found: list[Any] = []

    @frames.seen_while_tracing
    def leave(module: nn.Module) -> None:
        frames.note_for_backend(module)

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            leave(self)
            return x + 1

    def backend(gm: GraphModule, inputs: list[Any]) -> Any:
        found.append(frames.notes_for_backend())
        return gm.forward

    model = Noting()
    torch.compile(model, backend=backend)(X)
    assert found == [[model]]
