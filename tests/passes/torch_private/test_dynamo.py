"""The frame that is being compiled, its modules and its end, what Dynamo remembers, and errors through Dynamo."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import GraphModule

from attnres_kernels.errors import AttnResError
from attnres_passes.torch_private.dynamo import (
    as_backend_failure,
    frame_modules,
    graph_end,
    guard_identity,
    met_no_frame,
    uncompiled_caller,
    without_recorded_shapes,
)
from attnres_passes.torch_private.example_values import example_value
from tests.passes.helpers import Backend, Part, double, line_of, placeholders, sample, seen_by

VISION = str(Path(torch.__file__).parent.with_name("torchvision") / "model.py")


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x)
        torch._dynamo.graph_break()  # the break
        return self.part(x)


class Loop(nn.Module):
    """A break in a loop leaves this forward to Python, and the part is compiled by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.part(x)  # the call
            torch._dynamo.graph_break()
        return x


def frames(model: Callable[..., Any], *args: Any) -> list[list[nn.Module]]:
    return seen_by(lambda gm: [frame.module for frame in frame_modules(gm)], model, *args)


MODEL, PARTS = nn.Sequential(Part(), nn.Sequential(Part())), [Part(), Part()]


@pytest.mark.parametrize(
    ("compiled", "args", "expected"),
    [
        (MODEL, (), [MODEL]),
        (MODEL.forward, (), [MODEL]),
        (lambda x: PARTS[0](MODEL(x)), (), [MODEL, PARTS[0]]),
        (lambda x, part: part(x), (PARTS[1],), [PARTS[1]]),
        (lambda x, parts: parts[1](parts[0](x)), (PARTS,), PARTS),
        (lambda x, parts: parts["it"](x), ({"it": PARTS[0]},), [PARTS[0]]),
        ((lambda part: lambda x: part(x))(PARTS[0]), (), [PARTS[0]]),
        (lambda x, w: w * x, (nn.Parameter(sample()),), []),
    ],
    ids=["module", "method", "globals", "argument", "list", "dict", "closure", "no module"],
)
def test_frame_module_is_the_outermost(
    compiled: Callable[..., Any], args: tuple[Any, ...], expected: list[nn.Module]
) -> None:
    (found,) = frames(compiled, sample(), *args)
    assert len(found) == len(expected)
    assert {id(module) for module in found} == {id(module) for module in expected}


def test_frame_module_is_the_same_on_both_sides_of_a_break() -> None:
    model = Broken()
    assert frames(model, sample()) == [[model], [model]]


@pytest.mark.parametrize(("guarded", "graphs"), [(False, 1), (True, 2)])
def test_guard_keeps_a_graph_from_another_module_of_the_class(guarded: bool, graphs: int) -> None:
    def look(gm: GraphModule) -> None:
        (frame,) = frame_modules(gm)
        if guarded:
            guard_identity(frame)

    backend = Backend(look)
    models = [Part(), Part()]
    compiled = torch.compile(lambda part, x: part(x), backend=backend)
    for model in (*models, *models):
        torch.testing.assert_close(compiled(model, sample()), model(sample()))
    assert len(backend.seen) == graphs


def test_end_of_a_graph_at_a_break_and_at_the_return() -> None:
    first, second = seen_by(lambda gm: graph_end(), Broken(), sample())
    assert first.is_break
    assert first.source == f"{__file__}:{line_of(Broken, '# the break')}"
    assert "graph_break" in first.reason
    assert "\n" not in first.reason
    assert not second.is_break


def test_caller_is_a_module_around_that_runs_uncompiled() -> None:
    model = Loop()
    asked = [model.part, model, Part()]
    callers = seen_by(lambda gm: [uncompiled_caller(module) for module in asked], model, sample())
    assert callers[0] == [f"{__file__}:{line_of(Loop, '# the call')}", "", ""]
    whole = nn.Sequential(Part())
    assert seen_by(lambda gm: uncompiled_caller(whole[0]), whole, sample()) == [""]


def test_caller_may_be_a_file_of_torchvision() -> None:
    class VisionLoop(Loop):
        forward = types.FunctionType(Loop.forward.__code__.replace(co_filename=VISION), globals())

    model = VisionLoop()
    callers = seen_by(lambda gm: uncompiled_caller(model.part), model, sample())
    assert callers[0] == f"{VISION}:{line_of(Loop, '# the call')}"


class LateError(AttnResError, ValueError):
    def __init__(self, declined: int) -> None:
        self.declined = declined
        super().__init__(f"{declined} declined\nDo this.")


@pytest.mark.parametrize("expected", [LateError, AttnResError, ValueError, BackendCompilerFailed])
def test_error_reaches_the_user_as_its_class_and_as_torchs(expected: type[Exception]) -> None:
    error = LateError(3)

    def look(gm: GraphModule) -> None:
        raise as_backend_failure(error)

    assert str(as_backend_failure(error)) == str(error)
    with pytest.raises(expected) as caught:
        seen_by(look, double, sample())
    failure: Any = caught.value
    assert str(failure).startswith(error.message)  # Dynamo adds a hint of its own
    assert (failure.declined, failure.inner_exception) == (3, error)
    assert (type(failure).__name__, type(failure).__module__) == ("LateError", __name__)


def shapes(gm: GraphModule) -> list[bool]:
    """For each tensor, whether its length is a symbol."""
    values = [example_value(node) for node in placeholders(gm)]
    return [isinstance(value.shape[0], torch.SymInt) for value in values if isinstance(value, Tensor)]


def triple(x: Tensor) -> Tensor:
    return 3 * x


def test_capture_with_another_length_makes_nothing_dynamic() -> None:
    seen_by(shapes, double, sample(3))
    assert seen_by(shapes, double, sample(5)) == [[True]]
    torch._dynamo.reset()
    with without_recorded_shapes():
        seen_by(shapes, double, sample(3))
    assert seen_by(shapes, double, sample(5)) == [[False]]


def test_only_what_was_recorded_before_a_capture_that_fails_stays() -> None:
    def fail(gm: GraphModule) -> None:
        raise as_backend_failure(AttnResError(1))

    seen_by(shapes, double, sample(3))
    with pytest.raises(AttnResError), without_recorded_shapes():
        seen_by(fail, triple, sample(3))
    assert seen_by(shapes, double, sample(5)) == [[True]]
    assert seen_by(shapes, triple, sample(5)) == [[False]]


def test_a_call_that_dynamo_is_switched_off_for_met_no_frame() -> None:
    with torch._dynamo.config.patch(disable=True), pytest.raises(RuntimeError) as raised:
        torch.compile(nn.Linear(2, 2), backend="eager", fullgraph=True)(torch.ones(2))
    assert met_no_frame(raised.value)
    assert not met_no_frame(RuntimeError("the model's own"))
