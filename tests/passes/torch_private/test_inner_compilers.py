"""The inner compilers and their modes; compiling a graph at its call: sizes, added inputs, inputs changed in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from attnres_passes.torch_private import inner_compilers
from attnres_passes.torch_private.graph_copies import copied, mark_as_unknown
from attnres_passes.torch_private.inner_compilers import (
    compile_later,
    inductor_modes,
    traced_anew,
)
from tests.passes.helpers import WIDTH, Function, Part, captured, placeholders, sample
from tests.passes.rewrite.test_rewrite import tiny


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_every_inner_compiler_gives_the_same(inner: str) -> None:
    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return inner_compilers.compile_inner(gm, inputs, inner, None)

    model, x = Part(), sample().requires_grad_()
    actual, expected = torch.compile(model, backend=backend)(x), model(x)
    torch.testing.assert_close(actual, expected)
    weights = [x, *model.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(actual.sin().sum(), weights), torch.autograd.grad(expected.sin().sum(), weights)
    )


@pytest.mark.parametrize(
    ("mode", "patches"), [(None, None), ("default", {}), ("reduce-overhead", {"triton.cudagraphs": True})]
)
def test_mode_reaches_inductor(monkeypatch: pytest.MonkeyPatch, mode: str | None, patches: Any) -> None:
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda gm, inputs, config_patches: config_patches)
    assert inner_compilers.compile_inner(captured(tiny).gm, [], "inductor", mode) == patches


def test_modes_of_inductor() -> None:
    modes = inductor_modes()
    assert {"default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"} <= set(modes)
    assert modes["max-autotune-no-cudagraphs"]["max_autotune"] is True
    options = {name for mode in modes for name in modes[mode]}
    assert options <= set(torch._inductor.config.get_config_copy())


def test_what_is_traced_anew_is_not_taken_from_the_cache() -> None:
    import torch._functorch.config as functorch

    before = functorch.enable_autograd_cache
    with traced_anew(True):
        assert not functorch.enable_autograd_cache
    assert functorch.enable_autograd_cache == before
    with traced_anew(False):
        assert functorch.enable_autograd_cache == before


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_a_copy_can_be_compiled_when_it_is_called(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sizes that Dynamo left dynamic, an added input, and an input whose recorded value tracing has changed."""
    late: list[Callable[..., Any]] = []
    honest = inner_compilers.compile_inner

    def look(gm: GraphModule, examples: list[Any], *rest: Any) -> Any:
        *own, added = [value for value in examples if isinstance(value, torch.Tensor)]
        # The weight and the bias need gradients; the cache, which is changed in place, and x do not.
        assert [value.requires_grad for value in own] == [value.dim() < 3 for value in own]
        assert not added.requires_grad
        return honest(gm, examples, *rest)

    monkeypatch.setattr(inner_compilers, "compile_inner", look)

    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        copy = copied(gm)
        *_, last = copy.graph.nodes
        with copy.graph.inserting_after(placeholders(copy)[-1]):
            added = copy.graph.placeholder("added")
        mark_as_unknown(added)
        with copy.graph.inserting_before(last):
            total = copy.graph.call_function(torch.add, (last.args[0][0], added))
        last.args = ((total,),)
        copy.recompile()

        def call(*args: Any) -> Any:
            extra = torch.ones(WIDTH, dtype=torch.float64)
            if not late:
                late.append(compile_later(copy, [*args, extra], inner, None))
            return late[0](*args, extra)

        return call

    def into_cache(m: nn.Module, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.add_(m.linear[0](x))
        return cache.sin()

    model = Function(into_cache)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    for length in (3, 5, 4):
        x, cache = sample(2, length, WIDTH), torch.zeros(2, length, WIDTH, dtype=torch.float64)
        twin = cache.clone()
        found, expected = compiled(x, cache), model(x, twin) + 1
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(cache, twin)
        gradients = [torch.autograd.grad(out.sum(), model.linear[0].weight)[0] for out in (found, expected)]
        torch.testing.assert_close(*gradients)
    assert len(late) == 1
