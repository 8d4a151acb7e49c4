"""Values without data: their fake mode, and looks at their sizes that add no guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from attnres_passes.torch_private.example_values import (
    depends_on_data,
    example_value,
    fake_mode_of,
    size_hint,
    size_token,
    storage_id,
    without_new_guards,
)
from tests.passes.helpers import WIDTH, Backend, captured, placeholders, sample
from tests.passes.rewrite.test_rewrite import tiny


def test_fake_mode_is_that_of_the_values_or_a_new_one() -> None:
    mode = FakeTensorMode()
    fake = mode.from_tensor(sample())
    assert fake_mode_of([3, sample(), {"nested": (None, [fake])}]) is mode
    assert fake_mode_of([nn.Parameter(fake)]) is mode
    with fake_mode_of([real := sample(2, 3), 3]):
        assert (real @ torch.ones(3, 4, dtype=real.dtype)).shape == (2, 4)


def graphs_after_looking_at_the_size(look: Callable[[Any], Any], suppressed: bool) -> int:
    """How many graphs lengths of 5 and 50 take if the backend looks at the length as a symbol."""

    def peek(gm: GraphModule) -> None:
        values = [example_value(node) for node in placeholders(gm)]
        (size,) = [value.shape[0] for value in values if isinstance(value, Tensor)]
        assert isinstance(size, torch.SymInt)
        mode = fake_mode_of(values)
        if suppressed:
            with without_new_guards(mode):
                look(size)
        else:
            look(size)

    backend = Backend(peek)
    compiled = torch.compile(lambda x: 2 * x, backend=backend, dynamic=True)
    for length in (5, 50):
        compiled(sample(length, WIDTH))
    return len(backend.seen)


@pytest.mark.parametrize("look", [lambda size: bool(size > 9), lambda size: bool(size == 5), int])
def test_looking_at_a_size_adds_no_guard(look: Callable[[Any], Any]) -> None:
    assert graphs_after_looking_at_the_size(look, suppressed=False) == 2
    torch._dynamo.reset()
    assert graphs_after_looking_at_the_size(look, suppressed=True) == 1


def test_size_token_can_be_compared_without_a_guard() -> None:
    def look(size: Any) -> None:
        assert size_token(size) != 5
        assert size_token(size) == size_token(size)
        assert size_token(2 * size) != size_token(size)
        assert hash(size_token(2 * size)) == hash(size_token(size + size))

    assert graphs_after_looking_at_the_size(look, suppressed=False) == 1
    assert size_token(sample(5).shape[0]) == 5


def test_size_hint_is_the_size_of_the_call_without_a_guard() -> None:
    hints: list[int | None] = []

    def look(size: Any) -> None:
        hints.append(size_hint(2 * size))

    assert graphs_after_looking_at_the_size(look, suppressed=False) == 1
    assert hints == [10]
    assert size_hint(5) == 5


def test_size_that_data_decides_has_no_hint() -> None:
    with FakeTensorMode(shape_env=ShapeEnv()):
        (places,) = torch.nonzero(torch.zeros(3), as_tuple=True)
    assert size_hint(places.shape[0]) is None


def test_sizes_that_depend_on_data_are_forgotten() -> None:
    env = ShapeEnv(allow_dynamic_output_shape_ops=True)
    mode = FakeTensorMode(shape_env=env)
    with mode:
        (torch.ones(5) > 0).nonzero()
        pending = len(env.pending_fresh_unbacked_symbols)
        with without_new_guards(mode):
            (torch.ones(6) > 0).nonzero()
        assert len(env.pending_fresh_unbacked_symbols) == pending
        (torch.ones(7) > 0).nonzero()
        assert len(env.pending_fresh_unbacked_symbols) == pending + 1


def test_example_value_is_what_dynamo_or_autograd_recorded() -> None:
    shapes = [example_value(node).shape for node in placeholders(captured(tiny).gm)]
    assert shapes[:3] == [(2, 3, WIDTH), (WIDTH,), (WIDTH,)]
    traced = make_fx(torch.sin, tracing_mode="fake")(sample())
    assert example_value(placeholders(traced)[0]).shape == (2, 3, WIDTH)
    untraced = torch.fx.symbolic_trace(nn.Identity())
    assert example_value(placeholders(untraced)[0]) is None


def test_what_shares_memory_has_one_storage_also_without_data() -> None:
    one, other = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    assert storage_id(one) == storage_id(one.view(2, 2))
    assert storage_id(one) != storage_id(other)


def test_a_graph_depends_on_data_if_a_size_of_it_does() -> None:
    def graph(function: Callable[[Tensor], Any]) -> GraphModule:
        found: list[GraphModule] = []
        torch.compile(function, backend=lambda gm, _: found.append(gm) or gm.forward, fullgraph=True, dynamic=True)(
            torch.ones(3)
        )
        return found[0]

    assert not depends_on_data(graph(lambda x: x * x.shape[0]))
    assert depends_on_data(graph(lambda x: x[x > 0] * 2))
    assert depends_on_data(graph(lambda x: x * x.sum().item()))
