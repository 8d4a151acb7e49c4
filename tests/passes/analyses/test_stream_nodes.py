"""The nodes of a stream: which they are, and streams whose nodes cannot be replaced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_passes.analyses.carries.carry import Carry
from attnres_passes.analyses.stream_nodes import CarryNode
from attnres_passes.ir.plan import Reason
from tests.passes.helpers import WIDTH, Function, analysed, only_decline, only_stream


def test_steps_and_reads_are_nodes_of_the_graph() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = (x + linear(norm(x))).view(-1, WIDTH)
        return self.norm[-1](x)

    found, analysis = analysed(model)
    (stream,), nodes = analysis.stream_nodes, list(found.gm.graph.nodes)
    views = [step for step in stream.steps if isinstance(step, CarryNode)]
    assert [step.kind for step in views] == [Carry.RESHAPE] * 2
    assert {nodes[step.node].target for step in views} == {"view"}
    assert [nodes[step.node].op for step in stream.steps] == ["call_function", "call_method"] * 2 + ["call_function"]
    assert nodes[stream.root].op == "placeholder"
    # The last view leads to no addition, so that it is a reader and no step.
    readers = [nodes[user].target for read in stream.reads for _, user in read.uses]
    assert readers == [F.layer_norm, F.layer_norm, F.layer_norm, "view"]


def part_of_an_operator(self: Function, x: Tensor) -> Tensor:
    x = x + self.linear[0](self.norm[0](x))
    y = self.norm[1](x).view(-1, WIDTH)
    x = torch.addmm(x.view(-1, WIDTH), y, self.linear[1].weight).view(2, 3, WIDTH)
    x = x + self.linear[2](self.norm[2](x))
    return self.norm[-1](x)


def test_matrix_product_that_adds_is_not_rewritten_wrongly() -> None:
    """addmm is an addition inside a larger operator; the stream may not be rewritten across it."""
    _, analysis = analysed(part_of_an_operator)
    assert analysis.plan.streams == ()


def test_in_place_addition_to_a_view_of_an_input_is_declined() -> None:
    """The caller sees the change of its tensor, and the rewrite would take it out."""

    def model(self: Function, x: Tensor) -> Tensor:
        x = x.view(-1, WIDTH)
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x += linear(norm(x))
        return self.norm[-1](x)

    assert only_decline(analysed(model)[1]).reason is Reason.OPAQUE


def test_a_stream_that_begins_with_an_input_that_is_changed_names_the_line() -> None:
    """The caller sees the change; what the graph was given is another tensor for those who hold it."""

    def model(self: Function, x: Tensor) -> Tensor:
        x[:, 0] = 1.0  # the change
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        return self.norm[-1](x)

    decline = only_decline(analysed(model)[1])
    with open(__file__, encoding="utf-8") as file:
        line = next(number for number, text in enumerate(file, start=1) if "# the change" in text)
    assert decline.reason is Reason.OPAQUE
    assert decline.source == f"{__file__}:{line}"
    assert "what the stream begins with is an input of the graph, changed in place there" in decline.message


HOOKED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "every state": lambda x, k: x,
    "behind a factor": lambda x, k: 0.5 * x,
    "in another layout": lambda x, k: x.reshape(-1, WIDTH).view(x.shape),
}


@pytest.mark.parametrize("where", HOOKED)
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)], ids=["all", "one"])
def test_gradient_hook_on_a_state_is_declined(where: str, layers: tuple[int, ...]) -> None:
    """Whatever carries the stream on before the hook, and however many states have one."""

    def model(self: Function, x: Tensor) -> Tensor:
        x = x.sinh()
        for k in range(3):
            x = HOOKED[where](x + self.linear[k](self.norm[k](x)), k)
            if k in layers:
                x.register_hook(lambda gradient: gradient * 0.5)
        return self.norm[-1](x + self.linear[0](self.norm[0](x)))

    decline = only_decline(analysed(model)[1])
    assert decline.reason is Reason.GRADIENT_HOOK
    assert decline.source.startswith(__file__)


def test_gradient_hook_on_what_a_sublayer_gives_is_none_of_a_state() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            branch = self.linear[k](self.norm[k](x))
            branch.register_hook(lambda gradient: gradient * 0.5)
            x = x + branch
        return self.norm[-1](x)

    assert len(only_stream(analysed(model)[1]).writes) == 3
