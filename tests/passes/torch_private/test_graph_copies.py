"""A copy of a captured graph has all that compilers look up on the original, and is independent of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from attnres_passes.torch_private import inner_compilers
from attnres_passes.torch_private.graph_copies import copied, mark_as_added
from tests.passes.helpers import WIDTH, Function, captured, placeholders, sample
from tests.passes.rewrite.test_rewrite import tiny
from tests.passes.rewrite.test_rewrite_values import checkpointed, stack


def test_copy_has_the_nodes_attributes_and_parameters_of_the_original() -> None:
    gm = captured(stack(checkpointed)).gm
    copy = copied(gm)
    assert copy.code == gm.code
    assert copy.meta == gm.meta
    assert copy._param_name_to_source is gm._param_name_to_source
    assert [node.meta for node in copy.graph.nodes] == [node.meta for node in gm.graph.nodes]
    assert [node._dynamo_source for node in placeholders(copy)] == [node._dynamo_source for node in placeholders(gm)]
    assert None not in [node._dynamo_source for node in placeholders(copy)]
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    assert next(copied(model).parameters()) is next(model.parameters())


def test_change_of_a_copy_leaves_the_original_as_it_was() -> None:
    gm = captured(tiny).gm
    before, metadata = gm.code, [dict(node.meta) for node in gm.graph.nodes]
    copy = copied(gm)
    *_, norm, last = copy.graph.nodes
    last.args = (norm.args[0],)
    norm.meta["mark"] = copy.meta["mark"] = True
    copy.recompile()
    assert gm.code == before
    assert [node.meta for node in gm.graph.nodes] == metadata
    assert "mark" not in gm.meta


def test_autograd_takes_a_copy_with_an_added_placeholder() -> None:
    """AOTAutograd asks every placeholder for its source, and the module for the names of its parameters."""
    extra = sample(WIDTH)

    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        copy = copied(gm)
        *_, last = copy.graph.nodes
        with copy.graph.inserting_after(placeholders(copy)[-1]):
            added = copy.graph.placeholder("added")
        mark_as_added(added)
        with copy.graph.inserting_before(last):
            total = copy.graph.call_function(torch.add, (last.args[0][0], added))
        last.args = ((total,),)
        copy.recompile()
        compiled = inner_compilers.compile_inner(copy, [*inputs, extra], "aot_eager", None)
        return lambda *args: compiled(*args, extra)

    model = Function(tiny)
    torch.testing.assert_close(torch.compile(model, backend=backend)(sample()), model(sample()) + extra)
