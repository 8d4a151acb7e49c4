"""What a thread calls is seen while it is watched, and nothing stays patched."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnres_passes.torch_private.captures.python_calls import lines_until, watched_calls


class Watch:
    """Notes modules as they begin and end, and autograd functions by name."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextlib.contextmanager
    def around(self, module: nn.Module) -> Iterator[None]:
        self.seen.append(f"+{type(module).__name__}")
        yield
        self.seen.append(f"-{type(module).__name__}")

    def run(self, apply: Any, args: Any, kwargs: Any) -> Any:
        self.seen.append(apply.__self__.__name__)
        return apply(*args, **kwargs)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_forward_hook(lambda module, args, result: self.linear(result))

    def forward(self, x: Tensor) -> Tensor:
        return Twice.apply(x)


def test_modules_with_their_hooks_and_autograd_functions_are_seen() -> None:
    watch, x = Watch(), torch.randn(2, 3, requires_grad=True)
    model = Calling()
    expected = model(x)
    with watched_calls(watch.around, watch.run):
        found = model(x)
    assert torch.equal(found, expected)
    assert watch.seen == ["+Calling", "Twice", "+Linear", "-Linear", "-Calling"]
    model(x)
    assert len(watch.seen) == 5


def test_a_reentrant_checkpoint_runs_its_function_under_the_mode_of_its_caller() -> None:
    watch, x = Watch(), torch.randn(2, 3, requires_grad=True)
    modes: list[bool] = []

    def function(value: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return Twice.apply(value)

    checkpoint(function, x, use_reentrant=True)
    with watched_calls(watch.around, watch.run):
        checkpoint(function, x, use_reentrant=True)
    assert modes == [False, True]
    assert watch.seen == ["Twice"]


def test_other_threads_are_left_alone() -> None:
    watch = Watch()
    with watched_calls(watch.around, watch.run):
        thread = threading.Thread(target=Calling(), args=(torch.randn(2, 3),))
        thread.start()
        thread.join()
    assert not watch.seen


def test_nothing_stays_patched_behind_an_error() -> None:
    before = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
    watch = Watch()
    with pytest.raises(ZeroDivisionError), watched_calls(watch.around, watch.run):
        raise ZeroDivisionError
    assert (nn.Module.__call__, torch.autograd.Function.__dict__["apply"]) == before


def test_lines_lead_to_the_user() -> None:
    """Without those of torch's modules, of skipped files, and of what is inside the function that is run."""

    def runs(function: Any) -> Any:
        return function()

    def called() -> str:
        return inner()

    def inner() -> str:
        return lines_until(entry, None, runs.__code__, frozenset())

    class Module(nn.Module):
        def forward(self) -> Any:
            return runs(called)  # the line

    entry = sys._getframe()
    with open(__file__, encoding="utf-8") as file:
        line = next(number for number, text in enumerate(file, start=1) if "# the line" in text)
    assert Module()().splitlines() == [f'File "{__file__}", line {line}, in forward']
    assert lines_until(entry, None, runs.__code__, frozenset()) == ""
