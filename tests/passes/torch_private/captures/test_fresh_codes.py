"""Dynamo neither uses nor changes what it remembers of functions that run fresh codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._dynamo import eval_frame as c_eval_frame
from torch._dynamo import decorators, eval_frame

from attnres_passes.torch_private.captures.fresh_codes import fresh_codes
from tests.passes.helpers import sample


def inner(x: Tensor) -> Tensor:
    return 2 * x


def broken_in_loop(x: Tensor) -> Tensor:
    for _ in range(2):
        x = inner(x)
        torch._dynamo.graph_break()
    return inner(x)


def defines(x: Tensor) -> Tensor:
    def local(x: Tensor) -> Tensor:
        for _ in range(2):
            x = inner(x)
            torch._dynamo.graph_break()
        return x

    return local(x)


FUNCTIONS = [inner, broken_in_loop, defines]


def frames(function: Callable[..., Any]) -> list[str]:
    """The functions that Dynamo compiles, in order."""
    names: list[str] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        names.append(InstructionTranslator.current_tx().output.root_tx.f_code.co_name)
        return gm.forward

    torch.compile(function, backend=backend)(sample())
    return names


@pytest.mark.parametrize("function", [broken_in_loop, defines])
def test_what_was_compiled_before_is_not_seen(function: Callable[..., Any]) -> None:
    with fresh_codes(FUNCTIONS):
        expected = frames(function)
    first, second = frames(function), frames(function)
    assert first == expected
    with fresh_codes(FUNCTIONS):
        assert frames(function) == expected
    assert frames(function) == second


@pytest.mark.parametrize("function", [broken_in_loop, defines])
@pytest.mark.parametrize("given", [FUNCTIONS, []])
def test_nothing_is_left_behind(function: Callable[..., Any], given: list[Any]) -> None:
    """Also of functions that were not named, if Dynamo meets them for the first time."""
    codes, backends = [one.__code__ for one in FUNCTIONS], dict(eval_frame.cached_backends)
    with fresh_codes(given):
        frames(function)
    assert [one.__code__ for one in FUNCTIONS] == codes
    assert all(one.__code__ is code for one, code in zip(FUNCTIONS, codes, strict=True))
    assert not [code for code in codes if c_eval_frame._debug_get_cache_entry_list(code)]
    assert eval_frame.cached_backends == backends
    with fresh_codes(FUNCTIONS):
        expected = frames(function)
    assert frames(function) == expected


BREAKS = {"now": True}


def calls_its_own(x: Tensor) -> Tensor:
    def local(x: Tensor) -> Tensor:
        for _ in range(2):
            x = inner(x)
            if BREAKS["now"]:
                torch._dynamo.graph_break()
        return x

    for _ in range(1):
        torch._dynamo.graph_break()
        x = local(x)
    return x


def test_functions_that_a_function_defines_are_fresh_too() -> None:
    """Dynamo has left the inner one to Python, which a break in its loop made it do."""
    frames(calls_its_own)
    BREAKS["now"] = False
    assert frames(calls_its_own) == ["inner"]
    with fresh_codes([inner, calls_its_own]):
        assert frames(calls_its_own) == ["local"]


def test_codes_are_put_back_after_an_error() -> None:
    code = inner.__code__
    codes = []

    def fail() -> None:
        codes.append(inner.__code__)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), fresh_codes(FUNCTIONS):
        fail()
    assert codes[0] is not code
    assert inner.__code__ is code


def test_own_graphs_of_the_user_stay() -> None:
    compiled, seen = torch.compile(inner, backend=(backend := Counting())), []
    compiled(sample())
    with fresh_codes(FUNCTIONS):
        seen = frames(inner)
    compiled(sample())
    assert (seen, backend.count) == (["inner"], 1)


class Counting:
    count = 0

    def __call__(self, gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.count += 1
        return gm.forward


def test_a_disabled_function_stays_disabled() -> None:
    @decorators.skip
    def skipped(x: Tensor) -> Tensor:
        return inner(x) + 1

    with fresh_codes([inner, skipped]):
        assert frames(skipped) == ["inner"]
