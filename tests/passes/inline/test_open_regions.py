"""Bodies of checkpoints and nested regions in place of their calls."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.streams import find_streams
from attnres_passes.inline.open_regions import open_regions
from attnres_passes.ir import provenance
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Reason
from attnres_passes.ir.regions import region_of
from attnres_passes.ir.text import graph_text
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.recompute import region_call
from tests.passes.helpers import WIDTH, Function, captured, only_decline, sample


def stack(self: Function, x: Tensor) -> Tensor:
    for k in range(3):
        x = x + self.linear[k](self.norm[k](x)).tanh()
    return self.norm[-1](x)


def step(self: Function, k: int, x: Tensor) -> Tensor:
    return x + self.linear[k](self.norm[k](x)).tanh()


def checkpointed(self: Function, x: Tensor) -> Tensor:
    for k in range(3):
        x = checkpoint(step, self, k, x, use_reentrant=False)
    return self.norm[-1](x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).tanh()


class NestedLayer(Layer):
    forward = torch.compiler.nested_compile_region(Layer.forward)


class Model(nn.Module):
    def __init__(self, layer: type[nn.Module], count: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(layer() for _ in range(count))
        self.norm = nn.LayerNorm(WIDTH)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def opened(model: Any, *args: Tensor) -> GraphModule:
    return open_regions(captured(model, *args).gm)


def calls(gm: GraphModule) -> list[Node]:
    return [node for node in gm.graph.nodes if node.op.startswith("call")]


def test_a_graph_without_regions_is_given_back() -> None:
    gm = captured(stack).gm
    assert open_regions(gm) is gm


def test_the_body_stands_in_place_of_the_call() -> None:
    graph = captured(checkpointed)
    before = graph_text(graph.gm)
    gm = open_regions(graph.gm)
    gm.graph.lint()
    plain = captured(stack).gm
    assert [node.target for node in calls(gm)] == [node.target for node in calls(plain)]
    assert not any(region_call(node) for node in gm.graph.nodes)
    assert graph_text(graph.gm) == before
    torch.testing.assert_close(gm(*graph.inputs), plain(*captured(stack).inputs), rtol=0, atol=0)


def test_nodes_keep_what_they_know_of_themselves() -> None:
    gm, plain = opened(checkpointed), captured(stack).gm
    for ours, theirs in zip(calls(gm), calls(plain), strict=True):
        assert provenance.module_path(ours) == provenance.module_path(theirs)
        assert example_value(ours).shape == example_value(theirs).shape
        assert provenance.source_line(ours)
    for ours, theirs in zip(gm.graph.nodes, captured(checkpointed).gm.graph.nodes, strict=False):
        if theirs.op == "placeholder":
            assert ours._dynamo_source == theirs._dynamo_source


def test_each_call_of_a_checkpoint_is_a_region() -> None:
    gm = opened(checkpointed)
    regions = [region_of(node) for node in calls(gm)]
    assert [None if region is None else region.number for region in regions] == [0] * 4 + [1] * 4 + [2] * 4 + [None]
    assert len({id(region) for region in regions}) == 4
    assert regions[0] is not None
    assert regions[0].options == {"use_reentrant": False}
    assert regions[0].context_fn is None


def test_the_options_and_the_policy_of_a_checkpoint_are_kept() -> None:
    def policy(*args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE

    def model(self: Function, x: Tensor) -> Tensor:
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(step, self, 0, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts) * 2

    region = region_of(calls(opened(model))[0])
    assert region is not None
    assert region.options == {"use_reentrant": False, "preserve_rng_state": False}
    assert region.context_fn is not None
    assert region.context_fn()[0].policy_fn is policy


def test_a_region_in_a_region() -> None:
    def inner(self: Function, x: Tensor) -> Tensor:
        return checkpoint(step, self, 1, step(self, 0, x), use_reentrant=False)

    def model(self: Function, x: Tensor) -> Tensor:
        return checkpoint(inner, self, x, use_reentrant=False) * 2

    gm = opened(model)
    paths = [
        () if (region := region_of(node)) is None else tuple(one.number for one in region.path) for node in calls(gm)
    ]
    assert paths == [(0,)] * 4 + [(0, 1)] * 4 + [()]


def test_results_of_any_kind() -> None:
    """A tuple with an input of the body, a constant and nothing; keywords; a tensor of the closure."""

    def model(self: Function, x: Tensor) -> Tensor:
        outside = x.cos()

        def body(a: Tensor, *, b: Tensor, pair: tuple[Tensor, int]) -> Any:
            return a + outside, (b, pair[1], None), {"first": pair[0].sin()}

        total, (given, factor, nothing), named = checkpoint(body, x, b=x * 2, pair=(x, 3), use_reentrant=False)
        assert nothing is None
        return total + given * factor + named["first"]

    graph = captured(model)
    gm = open_regions(graph.gm)
    x = sample()
    torch.testing.assert_close(gm(*graph.inputs)[0], x + x.cos() + x * 6 + x.sin())


def test_dynamic_sizes_are_inputs_of_a_body() -> None:
    def body(x: Tensor, length: int) -> Tensor:
        return x[:, : length // 2].sin() * length

    def model(self: Function, x: Tensor) -> Tensor:
        return checkpoint(body, x, x.shape[1], use_reentrant=False).sum(1, keepdim=True) + x

    x = sample(2, 6, WIDTH)
    torch._dynamo.mark_dynamic(x, 1)
    graph = captured(model, x)
    gm = open_regions(graph.gm)
    gm.graph.lint()
    assert any(isinstance(example_value(node), torch.SymInt) for node in gm.graph.nodes if node.op == "placeholder")
    inputs = [6 if isinstance(value, (int, torch.SymInt)) else x for value in graph.inputs]
    torch.testing.assert_close(gm(*inputs)[0], (x[:, :3].sin() * 6).sum(1, keepdim=True) + x)


@pytest.mark.parametrize("deduplicated", [False, True])
def test_a_shared_body_has_the_labels_of_the_layer_that_calls(deduplicated: bool) -> None:
    plain = captured(Model(Layer), sample()).gm
    with torch._dynamo.config.patch(use_graph_deduplication=deduplicated):
        graph = captured(Model(Layer if deduplicated else NestedLayer), sample())
    assert any(region_call(node) for node in graph.gm.graph.nodes)
    gm = open_regions(graph.gm)
    assert [provenance.module_path(node) for node in calls(gm)] == [
        provenance.module_path(node) for node in calls(plain)
    ]
    assert all(region_of(node) is None for node in gm.graph.nodes)
    assert all(isinstance(example_value(node), Tensor) for node in calls(gm))
    torch.testing.assert_close(gm(*graph.inputs)[0], Model(Layer)(sample()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cond", "while_loop"])
def test_what_decides_at_run_time_stays_and_is_named(name: str) -> None:
    def conditional(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            x = torch.cond(x.sum() > 0, lambda x, k=k: step(self, k, x), torch.clone, (x,))
        return self.norm[-1](x)

    def loop(self: Function, x: Tensor) -> Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        count = torch.zeros((), dtype=torch.long)
        _, x = while_loop(lambda k, x: k < 3, lambda k, x: (k + 1, step(self, 0, x)), (count, x))
        return self.norm[-1](x)

    gm = captured(conditional if name == "cond" else loop).gm
    assert open_regions(gm) is gm
    decline = only_decline(find_streams(trace_aten(gm), AttnResConfig()))
    assert decline.reason is Reason.OPAQUE
    assert f"torch.ops.higher_order.{name} hides part of the model" in decline.message
    assert "keep the additions to the stream outside of it" in decline.message
