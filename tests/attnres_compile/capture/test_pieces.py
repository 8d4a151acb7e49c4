"""A capture in pieces is judged by the model: linked, or an error that names the line; whatever ran before."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.capture.capture import capture
from attnres_compile.model.errors import CaptureError, GraphBreakError, PartOfModelError
from tests.attnres_compile.capture.models import WIDTH, Block, Skip, Stack, ids, line_of_the_break, printing


def states(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_break_in_the_loop_over_layers_names_its_line() -> None:
    with pytest.raises(GraphBreakError, match=rf"models\.py:{line_of_the_break()}\b.*prepare\(model, \.\.\) plans"):
        ac.explain(Stack(printing), (ids(),))


def test_stream_across_a_break_in_the_loop_is_planned_whole(caplog: pytest.LogCaptureFixture) -> None:
    """As it is without the break; one line says that a run was planned, and where the break is."""
    whole = ac.prepare(Stack(), (ids(),))
    caplog.clear()
    with caplog.at_level(logging.INFO, "attnres_compile"):
        assert ac.prepare(Stack(printing), (ids(),)) == whole
    (message,) = [record.getMessage() for record in caplog.records if record.name == "attnres_compile"]
    assert f"models.py:{line_of_the_break()}" in message
    assert "planned from an uncompiled run" in message


class Apart(Stack):
    """A break behind the embedding: all layers are in one graph."""

    def forward(self, ids: Tensor) -> Any:
        x = self.embedding(ids)
        torch._dynamo.graph_break()
        for block in self.blocks:
            x = block(x)
        return self.norm(x) if self.between is None else x


def test_break_before_a_stream_cuts_nothing() -> None:
    plan = ac.prepare(Apart(), (ids(),))
    assert [len(stream.writes) for stream in plan.streams] == [6]
    assert not plan.partial


def test_model_may_return_its_last_state() -> None:
    """The end of the model's own frame is an end, also behind a break in it."""
    plan = ac.prepare(Apart(printing), (ids(),))
    assert [len(stream.writes) for stream in plan.streams] == [6]
    assert not plan.streams[0].reads[-1].normed


class Outer(nn.Module):
    """Python calls the model inside: a graph break keeps Dynamo from this forward."""

    def __init__(self, inner: nn.Module, after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.inner, self.after = inner, after
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, *args: Tensor) -> Tensor:
        x = torch.zeros(())
        for _ in range(1):
            torch._dynamo.graph_break()
            x = self.inner(*args)
        return self.head(x if self.after is None else self.after(x))


class Bare(Stack):
    def forward(self, ids: Tensor) -> Any:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_model_called_from_python_that_ends_in_a_norm_is_whole() -> None:
    plan = ac.prepare(Outer(Stack()), (ids(),))
    assert [len(stream.writes) for stream in plan.streams] == [6]


def test_model_called_from_python_that_ends_in_its_sum() -> None:
    """It is planned with the reader of that sum; its own graph alone is cut."""
    (stream,) = ac.prepare(Outer(Bare()), (ids(),)).streams
    assert [(read.module, read.normed) for read in stream.reads if read.state == 6] == [("head", False)]
    with pytest.raises(GraphBreakError, match=r"test_pieces\.py:\d+"):
        ac.explain(Outer(Bare()), (ids(),))


class Halves(nn.Module):
    """One addition before the break, a whole stream behind it. what: becomes of the sum between them."""

    def __init__(self, what: Callable[[Tensor], Tensor], inside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm = Block(1), Block(3), nn.LayerNorm(WIDTH)
        self.what, self.inside = what, inside

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.inside:
            x = self.what(x)
        torch._dynamo.graph_break()
        return self.norm(self.second(x if self.inside else self.what(x)))


def identity(x: Tensor) -> Tensor:
    return x


CARRIED: dict[str, Callable[[Tensor], Tensor]] = {
    "the sum": identity,
    "scaled": lambda x: 0.5 * x,
    "a view of it": lambda x: x.flatten(0, 1),
    "detached": lambda x: x.detach(),
}


@pytest.mark.parametrize("what", CARRIED.values(), ids=CARRIED)
@pytest.mark.parametrize("inside", [True, False])
def test_stream_that_begins_with_the_sum_of_an_earlier_graph_is_cut(
    what: Callable[[Tensor], Tensor], inside: bool
) -> None:
    with pytest.raises(GraphBreakError, match=r"before its first write: .*graph_break.* at .*test_pieces\.py"):
        ac.explain(Halves(what, inside), (states(),))


@pytest.mark.parametrize("what", CARRIED.values(), ids=CARRIED)
@pytest.mark.parametrize("inside", [True, False])
def test_stream_that_begins_with_the_sum_of_an_earlier_graph_is_planned_with_it(
    what: Callable[[Tensor], Tensor], inside: bool
) -> None:
    """As in one graph."""
    plan = ac.prepare(Halves(what, inside), (states(),))
    assert [(len(stream.writes), len(stream.left_out)) for stream in plan.streams] == [(4, 0)]


@pytest.mark.parametrize("inside", [True, False])
def test_stream_that_begins_with_a_norm_of_it_is_not(inside: bool) -> None:
    norm = nn.LayerNorm(WIDTH)
    plan = ac.prepare(Halves(lambda x: norm(x), inside), (states(),))
    assert [len(stream.writes) for stream in plan.streams] == [3]


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.norm = Block(2), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.block(x))


class InPython(nn.Module):
    """The layers are called from Python, which scales the sum between them."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = Block(writes)
        self.last = Last()

    def forward(self, x: Tensor) -> Any:
        for _ in range(1):
            x = self.first(x)
            torch._dynamo.graph_break()
            x = self.last(torch.tensor(x.tolist()) * 0.5)  # behind Python
        return x


def line_behind_python() -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(number for number, text in enumerate(file, start=1) if "# behind Python" in text)


@pytest.mark.parametrize("writes", [1, 2])
def test_sum_that_python_made_behind_one_of_a_graph_is_no_beginning(writes: int) -> None:
    """A stream that begins with it is a piece, and says so."""
    with pytest.raises(GraphBreakError, match=r"test_pieces\.py"):
        ac.explain(InPython(writes), (states(),))
    with pytest.warns(UserWarning, match=rf"partly rewritten: .*test_pieces\.py:{line_behind_python()}"):
        assert ac.prepare(InPython(writes), (states(),)).partial


class Tower(nn.Module):
    """Beside a whole stream, one that a break in its loop cuts into single additions."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.stack, self.projection = Stack(printing, writes=1), Stack(), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Any:
        return self.stack(ids) + self.projection(self.tower(ids))


def test_stream_beside_one_in_pieces_is_whole() -> None:
    assert [len(stream.writes) for stream in ac.prepare(Tower(), (ids(),)).streams] == [6, 3]
    plan = ac.explain(Tower(), (ids(),)).plan
    assert [len(stream.writes) for stream in plan.streams] == [6]
    assert not plan.partial
    messages = {decline.message for decline in plan.declined}
    assert len(messages) == 1
    assert f"models.py:{line_of_the_break()}; take that line out of the forward" in messages.pop()


def test_state_that_a_later_graph_adds_to_is_cut() -> None:
    with pytest.raises(GraphBreakError, match=r"'.*' that a later graph adds to: .*models\.py"):
        ac.explain(Skip(breaks=True), (states(),))
    whole = ac.explain(Skip(breaks=False), (states(),)).plan
    assert whole.partial
    with pytest.warns(UserWarning, match="partly rewritten"):
        assert ac.prepare(Skip(breaks=True), (states(),)) == whole


class Collects(Stack):
    """Returns its states as well, behind a break."""

    def forward(self, ids: Tensor) -> Any:
        x = self.embedding(ids)
        states = []
        for block in self.blocks:
            states.append(x)
            x = block(x)
        x = self.norm(x)
        torch._dynamo.graph_break()
        return self.norm(x), [2 * state + self.norm.weight.expand(state.shape) for state in states]


def test_state_that_is_returned_behind_a_break_is_a_read() -> None:
    plan = ac.prepare(Collects(), (ids(),))
    assert [read.state for read in plan.streams[0].reads if not read.normed] == [0, 2, 4]


def test_inputs_of_the_model_are_known_and_what_graphs_hand_on_is_named() -> None:
    captured = capture(Halves(identity, True), (states(),), None)
    first, second = captured.graphs
    assert not first.taken
    assert [(taken.graph, taken.output) for taken in second.taken] == [(0, 0)]
    assert first.end.is_break
    assert not second.end.is_break


def prepared(model: nn.Module, x: Tensor) -> Any:
    return ac.prepare(copy.deepcopy(model), (x,)).to_dict()


def explained(model: nn.Module, x: Tensor) -> Any:
    return ac.explain(model, (x,)).plan.to_dict()


def verified(model: nn.Module, x: Tensor) -> Any:
    return ac.verify(model, (x,)).passed


class Counting:
    """A backend that counts its graphs."""

    graphs = 0

    def __call__(self, gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        return gm.forward


def graphs_of_the_user(model: nn.Module, x: Tensor) -> int:
    backend = Counting()
    torch.compile(model, backend=backend)(x)
    return backend.graphs


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except ac.AttnResError as error:
        return type(error), str(error)


USES = [prepared, explained, verified, graphs_of_the_user]
KINDS = {
    "loop": lambda: (Stack(printing), ids()),
    "skip": lambda: (Skip(breaks=True), states()),
    "whole": lambda: (Stack(), ids()),
}


@functools.cache
def in_a_fresh_process(kind: str) -> list[Any]:
    found = []
    for use in USES:
        torch._dynamo.reset()
        found.append(outcome(use, *KINDS[kind]()))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", range(len(USES)))
def test_what_ran_before_changes_nothing(kind: str, first: int) -> None:
    """Each use twice, in an order that begins with each; the graphs of the user are counted the first time only."""
    expected = in_a_fresh_process(kind)
    torch._dynamo.reset()
    model, x = KINDS[kind]()
    order = [*range(first, len(USES)), *range(first)]
    counted = False
    for number in (*order, *reversed(order)):
        found = outcome(USES[number], model, x)
        if USES[number] is not graphs_of_the_user or not counted:
            assert found == expected[number]
        counted |= USES[number] is graphs_of_the_user


def test_user_compiles_as_often_as_without_a_capture() -> None:
    """Recompilations for other sizes and other blocks, too."""
    counts = []
    for captures in (False, True):
        torch._dynamo.reset()
        model, counter = Stack(printing), Counting()
        if captures:
            with pytest.raises(GraphBreakError):
                ac.explain(model, (ids(),))
            ac.prepare(model, (ids(),))
            ac.unprepare(model)
        compiled = torch.compile(model, backend=counter)
        for tokens in (3, 5, 7):
            compiled(torch.zeros(2, tokens, dtype=torch.int64))
        counts.append(counter.graphs)
    assert counts[0] == counts[1]


def test_block_compiled_on_its_own_in_a_model_that_was_not_prepared() -> None:
    model = Stack()
    for block in model.blocks:
        block.compile(backend="attnres", options={"inner": "eager"})
    before = list(model.state_dict())
    with pytest.raises(
        PartOfModelError, match=r"Block is compiled on its own, called at .*models\.py:\d+.*prepare\(model"
    ):
        model(ids())
    assert list(model.state_dict()) == before


def test_block_that_is_no_part_of_a_running_model_may_be_compiled() -> None:
    block = Block()
    block.compile(backend="attnres", options={"inner": "eager"})
    with pytest.warns(UserWarning, match="not prepared"):
        block(states())
    assert ac.status(block).reads == 2


def test_whole_model_inside_another_one_may_be_compiled() -> None:
    outer = Outer(Stack())
    outer.inner.compile(backend="attnres", options={"inner": "eager"})
    with pytest.warns(UserWarning, match="not prepared"):
        outer(ids())
    assert ac.status(outer.inner).state == "rewritten"


@pytest.mark.parametrize("on_decline", ["error", "ignore"])
@pytest.mark.parametrize("inside", [True, False])
def test_unprepared_model_with_a_break_in_its_stream(on_decline: str, inside: bool) -> None:
    """Nothing of the first graph is a stream, and the second one begins with its sum."""
    model = Halves(identity, inside)
    model.compile(backend="attnres", options={"inner": "eager", "on_decline": on_decline})
    with pytest.raises(GraphBreakError, match=r"before its first write: .*test_pieces\.py"):
        model(states())
    assert not [name for name, _ in model.named_parameters() if "attnres" in name]


def test_unprepared_model_with_a_break_before_its_stream() -> None:
    model = Apart()
    model.compile(backend="attnres", options={"inner": "eager"})
    with pytest.warns(UserWarning, match="not prepared"):
        model(ids())
    assert ac.status(model).reads == 6


def test_unprepared_model_with_a_break_in_the_loop_registers_nothing() -> None:
    model = Stack(printing)
    model.compile(backend="attnres", options={"inner": "eager"})
    with pytest.raises(PartOfModelError, match="a graph break there"):
        model(ids())
    assert not [name for name, _ in model.named_parameters() if "attnres" in name]


@pytest.mark.parametrize("pair", list(itertools.permutations([Skip(False), Skip(True)], 2)), ids=["whole", "broken"])
def test_instances_of_one_class_do_not_change_each_other(pair: tuple[Skip, Skip]) -> None:
    results = {model.breaks: outcome(explained, model, states()) for model in pair}
    assert results[True][0] is GraphBreakError
    assert results[False]["partial"]


@pytest.mark.parametrize(
    "off", [lambda: torch._dynamo.config.patch(disable=True), lambda: torch.compiler.set_stance("force_eager")]
)
def test_with_dynamo_switched_off_nothing_is_planned(off: Callable[[], Any]) -> None:
    """What could never be compiled is no model that runs in several graphs."""
    with off(), pytest.raises(CaptureError, match="Compilation must not be disabled"):
        ac.prepare(Stack(), (ids(),))


@pytest.mark.parametrize("between", [None, printing], ids=["one graph", "in pieces"])
def test_nothing_that_compilation_sets_on_a_model_stays(monkeypatch: pytest.MonkeyPatch, between: Any) -> None:
    """What is set on a compiled module lands on the module in it; Lightning keeps the options there."""
    model, compile_module = Stack(between=between), torch.compile

    def keeping_options(module: nn.Module, **options: Any) -> Any:
        compiled = compile_module(module, **options)
        compiled._compile_kwargs = options
        return compiled

    monkeypatch.setattr(torch, "compile", keeping_options)
    before = set(vars(model))
    capture(model, (ids(),), None)
    assert set(vars(model)) == before


class Bridge(nn.Module):
    """A state in the middle of a stack goes to a later graph through what ``reader`` makes of it."""

    def __init__(self, reader: Callable[[Bridge, Tensor], Tensor], passes_on: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = Block(2), Block(2), Block(2)
        self.norm, self.project = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.reader, self.passes_on = reader, passes_on

    def forward(self, x: Tensor) -> Any:
        x = self.first(torch.sinh(x))
        read = self.reader(self, x)
        y = self.norm(self.second(x))
        torch._dynamo.graph_break()
        if self.passes_on:
            read = torch.tanh(read)
            torch._dynamo.graph_break()
        return self.norm(self.third(self.project(y)) + self.project(read)) + self.norm(read)


UNNORMED: dict[str, Callable[[Bridge, Tensor], Tensor]] = {
    "projected": lambda self, x: self.project(x),
    "through an activation": lambda self, x: torch.relu(self.project(x)),
    "as a gate of itself": lambda self, x: torch.sigmoid(x) * self.norm(x),
}


@pytest.mark.parametrize("passes_on", [False, True])
@pytest.mark.parametrize("reader", UNNORMED)
def test_unnormed_read_that_feeds_a_write_of_a_later_graph(reader: str, passes_on: bool) -> None:
    """Its graph alone shows a value that is returned; planned as a whole, the stream is declined for it."""
    with pytest.raises(GraphBreakError, match="un-normed, for a later sublayer"):
        ac.explain(Bridge(UNNORMED[reader], passes_on), (states(),))
    plan = ac.prepare(Bridge(UNNORMED[reader], passes_on), (states(),))
    assert "unnormed_read" in {decline.reason.value for decline in plan.declined}
    assert all(stream.writes[0].module.startswith("third") for stream in plan.streams)


@pytest.mark.parametrize("passes_on", [False, True])
def test_normed_read_that_feeds_a_write_of_a_later_graph(passes_on: bool) -> None:
    ac.explain(Bridge(lambda self, x: self.norm(x), passes_on), (states(),))
