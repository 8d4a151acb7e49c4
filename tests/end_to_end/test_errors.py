"""Every mistake gets its own error, which says what to do, and leaves the model as it was."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import attnres_compile as ac
from attnres_compile.model import errors
from tests.end_to_end.models import PreNorm, tokens

EAGER = {"inner": "eager"}


class Broken(PreNorm):
    """A graph break between two sublayers."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = self.blocks[0](x)
        x = self.blocks[1](x)
        if self.breaks:
            torch._dynamo.graph_break()
        return self.head(self.norm(self.blocks[2](x)))

    breaks = True


class BrokenInLoop(PreNorm):
    """A graph break in a loop, for which Dynamo leaves the whole frame to Python."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + block.mlp(block.norm(x))
            if self.breaks:
                torch._dynamo.graph_break()
        return self.head(self.norm(x))

    breaks = True


def unchanged(model: nn.Module, ids: Tensor, expected: Tensor, names: list[str]) -> None:
    """The model runs as before, uncompiled, with the parameters that it had."""
    model._compiled_call_impl = None
    assert torch.equal(plain(model, ids), expected)
    assert list(model.state_dict()) == names


def plain(model: nn.Module, ids: Tensor) -> Tensor:
    with ac.plain(model) if hasattr(model, "attnres") else contextlib.nullcontext():
        return model(ids)


def failing(model: nn.Module, ids: Tensor, error: type[Exception], match: str, **options: object) -> None:
    expected, names = plain(model, ids), list(model.state_dict())
    model.compile(backend="attnres", options={**EAGER, **options})
    with pytest.raises(error, match=match) as raised:
        model(ids)
    assert isinstance(raised.value, ac.AttnResError)
    assert isinstance(raised.value, BackendCompilerFailed)
    assert type(raised.value.inner_exception) is error
    unchanged(model, ids, expected, names)


def test_no_stream_lists_the_declines() -> None:
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    model, x = Perceptron(), torch.randn(2, 4)
    failing(model, x, errors.NoStreamError, r"no_residual: .*\n.*on_decline=\"warn\"")
    with pytest.raises(errors.NoStreamError) as raised:
        ac.prepare(model, (x,))
    assert [decline.reason.value for decline in raised.value.declined] == ["no_residual"]
    assert not hasattr(model, "attnres")


def test_on_decline_warn_and_ignore(recwarn: pytest.WarningsRecorder) -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    with pytest.warns(UserWarning, match="attnres: no residual stream"):
        plan = ac.prepare(model, (x,), on_decline="warn")
    assert not plan.streams
    recwarn.clear()
    assert ac.prepare(model, (x,), on_decline="ignore").declined
    assert not [warning for warning in recwarn if "attnres" in str(warning.message)]


def test_graph_break_across_a_stream_names_the_line() -> None:
    ids = tokens()
    line = next(
        number
        for number, text in enumerate(Path(__file__).read_text().splitlines(), start=1)
        if "graph_break()" in text and not text.strip().startswith("if")
    )
    where = rf"test_errors\.py:{line}"
    failing(Broken(), ids, errors.GraphBreakError, where)
    with pytest.raises(errors.GraphBreakError, match=where):
        ac.explain(Broken(), (ids,))
    model = Broken()
    model.breaks = False
    ac.prepare(model, (ids,))
    # A prepared model hands its stream on over the break.
    torch.compiler.reset()
    whole = torch.compile(model, backend="attnres", options=EAGER, fullgraph=True)(ids).detach()
    model.breaks = True
    model.compile(backend="attnres", options=EAGER)
    torch.testing.assert_close(model(ids).detach(), whole)
    assert ac.status(model).state == "rewritten"


def test_graph_break_in_a_loop_names_the_line() -> None:
    with pytest.raises(errors.GraphBreakError, match=r"test_errors\.py:\d+"):
        ac.explain(BrokenInLoop(), (tokens(),))


def test_model_that_runs_without_its_depth_attention_does_not_train_in_silence() -> None:
    model, ids = BrokenInLoop(), tokens()
    model.breaks = False
    ac.prepare(model, (ids,))
    model.breaks = True
    model.compile(backend="attnres", options=EAGER)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ac.AttnResError, match="break"):
        train_step(model, ids, optimizer)


def train_step(model: nn.Module, ids: Tensor, optimizer: torch.optim.Optimizer) -> None:
    model(ids).sum().backward()
    optimizer.step()


def test_single_layer_of_a_prepared_model() -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,))
    model.blocks[1].compile(backend="attnres", options=EAGER)
    with pytest.raises(errors.BorderError, match=r"blocks\.1\.mlp adds to the stream 'blocks' .* not known"):
        model(ids)
    model.blocks[1]._compiled_call_impl = None
    plain(model, ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_block": 4}, "did you mean 'num_blocks'?"),
        ({"block_size": 2, "num_blocks": 4}, "give one of them"),
        ({"num_blocks": 0}, "num_blocks=0 is not an integer >= 1"),
        ({"block_size": -1}, "block_size=-1 is not an integer >= 1"),
        ({"schedule": "two-phase"}, "did you mean 'two_phase'?"),
    ],
)
def test_options(options: dict, message: str) -> None:
    failing(PreNorm(), tokens(), errors.ConfigError, re.escape(message), **options)
    with pytest.raises(errors.ConfigError, match=re.escape(message)):
        ac.prepare(PreNorm(), (tokens(),), **options)


def test_options_must_agree_with_the_plan() -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), num_blocks=2)
    failing(model, ids, errors.ConfigError, "num_blocks=3 contradicts the plan", num_blocks=3)
    model.compile(backend="attnres", options={**EAGER, "num_blocks": 2, "schedule": "direct"})
    model(ids)


def test_modes() -> None:
    model, ids = PreNorm(), tokens()
    model.compile(backend="attnres", mode="fastest")
    with pytest.raises(errors.ConfigError, match=r"mode='fastest' is unknown to Inductor.*'max-autotune'"):
        model(ids)


def test_more_blocks_than_writes_is_one_write_a_block() -> None:
    plan = ac.prepare(PreNorm(), (tokens(),), num_blocks=50)
    assert (plan.streams[0].num_blocks, plan.streams[0].block_size) == (3, 1)
    assert "3 blocks of 1" in str(plan)


def test_prepare_twice() -> None:
    model, ids = PreNorm(), tokens()
    plan = ac.prepare(model, (ids,), num_blocks=2)
    query = model.attnres.streams[0].reads[0].query
    assert ac.prepare(model, (ids,), num_blocks=2) is plan
    with pytest.raises(errors.AlreadyPreparedError, match=r"unprepare\(model\)"):
        ac.prepare(model, (ids,), num_blocks=3)
    assert model.attnres.streams[0].reads[0].query is query
    ac.unprepare(model)
    ac.prepare(model, (ids,), num_blocks=3)


def test_param_groups_cover_every_parameter_once() -> None:
    model, ids = PreNorm(), tokens()
    with pytest.raises(errors.NotPreparedError, match="prepare"):
        ac.param_groups(model, lr=0.1, weight_decay=0.1)
    ac.prepare(model, (ids,))
    groups = ac.param_groups(model, lr=0.1, weight_decay=0.1)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, model.parameters()))
    assert {id(p) for p in groups[-1]["params"]} == {id(p) for p in model.attnres.parameters()}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    torch.optim.AdamW(groups)


def test_empty_batch() -> None:
    for function in (ac.prepare, ac.explain, ac.verify):
        with pytest.raises(errors.EmptyBatchError, match=r"\(0, 5\).*at least one row"):
            function(PreNorm(), (tokens(batch=0),))


def test_non_floating_stream() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int64), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            x = x + x @ self.weight
            return x + x @ self.weight

    with pytest.raises(errors.NoStreamError, match=r"non_floating.*int64"):
        ac.prepare(Counter(), (torch.ones(2, 4, dtype=torch.int64),))


def test_attribute_of_the_same_name() -> None:
    model, ids = PreNorm(), tokens()
    model.attnres = 1
    with pytest.raises(errors.RegistrationError, match="rename it"):
        ac.prepare(model, (ids,))
    assert model.attnres == 1


def test_inputs_that_do_not_run() -> None:
    model = PreNorm()
    model.head = nn.Linear(3, 5)  # the stream is wider
    with pytest.raises(errors.CaptureError, match="does not run on these inputs"):
        ac.prepare(model, (tokens(),))


def test_returned_states_that_the_plan_does_not_know() -> None:
    class Returning(PreNorm):
        everything = False

        def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
            x = self.embedding(ids)
            states = []
            for block in self.blocks:
                x = block(x)
                states.append(x)
            return (self.head(self.norm(x)), *(states if self.everything else ()))

    model, ids = Returning(), tokens()
    ac.prepare(model, (ids,))
    model.everything = True
    model.compile(backend="attnres", options=EAGER)
    with pytest.raises(errors.StalePlanError, match="output_hidden_states"):
        model(ids)


def test_frozen_after_compilation() -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,))
    model.compile(backend="attnres", options=EAGER)
    model(ids)
    model.attnres.requires_grad_(False)
    with pytest.raises(errors.StalePlanError, match="requires_grad"):
        model(ids)
