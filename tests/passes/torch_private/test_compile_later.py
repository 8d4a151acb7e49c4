"""Compiling a graph at its call: sizes, added inputs, inputs changed in place; and checkpoints around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from attnres_passes.torch_private import torch_compat
from attnres_passes.torch_private.compile_later import compile_later, unseen_by_checkpoints
from tests.passes.helpers import WIDTH, Function, placeholders, sample


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_a_copy_can_be_compiled_when_it_is_called(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sizes that Dynamo left dynamic, an added input, and an input whose recorded value tracing has changed."""
    late: list[Callable[..., Any]] = []
    honest = torch_compat.compile_inner

    def look(gm: GraphModule, examples: list[Any], *rest: Any) -> Any:
        *own, added = [value for value in examples if isinstance(value, torch.Tensor)]
        # The weight and the bias need gradients; the cache, which is changed in place, and x do not.
        assert [value.requires_grad for value in own] == [value.dim() < 3 for value in own]
        assert not added.requires_grad
        return honest(gm, examples, *rest)

    monkeypatch.setattr(torch_compat, "compile_inner", look)

    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        copy = torch_compat.copied(gm)
        *_, last = copy.graph.nodes
        with copy.graph.inserting_after(placeholders(copy)[-1]):
            added = copy.graph.placeholder("added")
        torch_compat.mark_as_unknown(added)
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


def test_a_checkpoint_does_not_see_what_is_saved_unseen() -> None:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda packed: packed):
        with unseen_by_checkpoints():
            out = sample().requires_grad_().exp()
        assert saved == []
        sample().requires_grad_().exp()
    assert len(saved) == 1
    out.sum().backward()
