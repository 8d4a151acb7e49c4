"""What a recording leaves as it is, what it counts, and what it refuses."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from attnres_compile.model.errors import ConfigError, NotPreparedError, RecordingError
from attnres_compile.recording import graph
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.torch_private import inner_compilers
from tests.end_to_end.models import LAYERS, VOCABULARY, PreNorm, randomize, tokens


def prepared(model: nn.Module | None = None, **options: Any) -> nn.Module:
    model = model or PreNorm()
    ac.prepare(model, (tokens(),), **{"block_size": 2, "inner": "eager", **options})
    randomize(model)
    model.compile(backend="attnres")
    return model


def train(call: Callable[[Tensor], Tensor], model: nn.Module, ids: Tensor) -> list[Tensor]:
    """The output, and all gradients, of one step under a fixed random state."""
    torch.manual_seed(3)
    model.zero_grad()
    out = call(ids)
    nn.functional.cross_entropy(out.flatten(0, 1), ids.flatten()).backward()
    return [out.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def all_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """All graphs that reach the inner compiler."""
    graphs: list[torch.fx.GraphModule] = []
    honest = inner_compilers.compile_inner

    def look(gm: torch.fx.GraphModule, *rest: Any) -> Any:
        graphs.append(gm)
        return honest(gm, *rest)

    monkeypatch.setattr(inner_compilers, "compile_inner", look)
    return graphs


def recorded_nodes(gm: torch.fx.GraphModule) -> int:
    kinds = [annotation.kind for node in gm.graph.nodes if (annotation := annotation_of(node)) is not None]
    return sum(kind in ("statistic", "probe") for kind in kinds)


def test_outputs_and_gradients_stay_bit_identical(compiled: list[torch.fx.GraphModule]) -> None:
    """With dropout, so that the random state is what it is without; and off, a graph holds nothing of a recording."""
    model, ids = prepared(PreNorm(dropout=0.3)), tokens()
    before = train(model, model, ids)
    assert [recorded_nodes(gm) for gm in compiled] == [0]
    with ac.depth_weights(model) as w:
        during = train(model, model, ids)
    assert len(compiled) == 2, "compiled once more, and not before it was recorded"
    assert recorded_nodes(compiled[1]) > 0
    assert len(compiled[1].graph.output_node().args[0]) == len(compiled[0].graph.output_node().args[0]) + 1
    after = train(model, model, ids)
    assert all_equal(before, during)
    assert all_equal(before, after)
    assert w.reads[0].tokens == ids.numel(), "what runs after the with statement is not recorded"
    with ac.depth_weights(model):
        train(model, model, ids)
    assert len(compiled) == 2, "a second recording compiles nothing"
    assert ac.status(model).graphs == 1


def test_under_inductor_with_dynamic_sizes() -> None:
    """The graph that Dynamo made dynamic records under any size, in training and without gradients."""
    model = PreNorm(layers=2)
    ac.prepare(model, (tokens(),), block_size=1)
    randomize(model)
    twin = copy.deepcopy(model)
    model.compile(backend="attnres", dynamic=True)
    twin.compile(backend="attnres", options={"inner": "eager"})
    with ac.depth_weights(model) as w, ac.depth_weights(twin) as expected:
        for length in (5, 9, 6):
            ids = tokens(batch=4, length=length)
            for found, wanted in zip(train(model, model, ids), train(twin, twin, ids), strict=True):
                torch.testing.assert_close(found, wanted)
    assert ac.status(model).graphs == 1
    for found, wanted in zip(w.reads, expected.reads, strict=True):
        assert found.tokens == wanted.tokens == 4 * (5 + 9 + 6)
        assert found.weights == pytest.approx(wanted.weights, rel=1e-5)
    assert w.output_magnitude == pytest.approx(expected.output_magnitude, rel=1e-5)
    assert w.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)


@pytest.mark.interpreter
def test_on_generated_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for kernels in ("torch", "triton"):
        monkeypatch.setenv("ATTNRES_KERNELS", kernels)
        torch.manual_seed(0)
        torch._dynamo.reset()
        model, ids = prepared(), tokens()
        plain = train(model, model, ids)
        with ac.depth_weights(model) as w:
            for one, other in zip(train(model, model, ids), plain, strict=True):
                torch.testing.assert_close(one, other)
        found[kernels] = w
    assert found["torch"].gradient_norm == pytest.approx(found["triton"].gradient_norm, rel=1e-4)
    for one, other in zip(found["torch"].weights, found["triton"].weights, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_memory_does_not_grow_with_steps() -> None:
    """Forward passes with and without a backward pass, and such in a grad mode whose backward never comes."""
    model, ids = prepared(), tokens()

    def live_tensors() -> list[Tensor]:
        gc.collect()
        return [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]

    # What other tests left may go at any time.
    earlier = [weakref.ref(one) for one in live_tensors()]

    def new_tensors() -> int:
        known = {id(one) for reference in earlier if (one := reference()) is not None}
        return sum(id(one) not in known for one in live_tensors())

    counts = []
    with ac.depth_weights(model) as w:
        for step in range(12):
            train(model, model, ids)
            model(ids)
            with torch.no_grad():
                model(ids)
            if step in (2, 11):
                counts.append(new_tensors())
    assert counts[0] == counts[1]
    assert w.writes[0].tokens == 3 * 12 * ids.numel()
    assert w.writes[0].backwards == 12


class CheckpointedBranch(PreNorm):
    """Activation checkpointing around every sublayer, inside the graph."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + checkpoint(block.mlp, block.norm(x), use_reentrant=False)
        return self.head(self.norm(x))


@pytest.mark.parametrize("how", ["branch", "around", "around, reentrant"])
def test_what_checkpointing_computes_again_is_counted_once(how: str) -> None:
    torch.manual_seed(1)
    plain, ids = prepared(), tokens()
    model = prepared(CheckpointedBranch() if how == "branch" else PreNorm())
    model.load_state_dict(plain.state_dict())

    def call(ids: Tensor) -> Tensor:
        if how == "branch":
            return model(ids)
        # The reentrant form needs an input with a gradient.
        reentrant, dummy = how == "around, reentrant", torch.ones((), requires_grad=True)
        return checkpoint(lambda ids, dummy: model(ids) * dummy, ids, dummy, use_reentrant=reentrant)

    with ac.depth_weights(plain) as expected, ac.depth_weights(model) as w:
        for _ in range(2):
            expected_step, step = train(plain, plain, ids), train(call, model, ids)
            for one, other in zip(step, expected_step, strict=True):
                torch.testing.assert_close(one, other)
    assert [write.tokens for write in w.writes] == [2 * ids.numel()] * LAYERS
    assert [write.backwards for write in w.writes] == [2] * LAYERS
    assert w.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    for one, other in zip(w.weights, expected.weights, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_so_many_steps(checkpointed: bool) -> None:
    """The first length has a graph of its own, all others share one; what is computed again is no step."""
    model = prepared()
    with ac.depth_weights(model, every=3) as w:
        for length in (3, 4, 5, 6, 7):
            ids = tokens(length=length)
            out = checkpoint(model, ids, use_reentrant=False) if checkpointed else model(ids)
            out.sum().backward()
    assert w.reads[0].tokens == 2 * (3 + 6)
    assert w.writes[0].backwards == 2


@pytest.mark.parametrize("how", ["wrapped", "function", "part of a module", "inference mode", "autocast"])
def test_ways_to_run(how: str) -> None:
    model, ids = prepared(), tokens()
    call: Callable[[Tensor], Tensor] = model
    around: nn.Module = model
    if how == "wrapped":
        call = around = torch.compile(model, backend="attnres", options={"inner": "eager"})
    elif how == "function":
        call = torch.compile(lambda ids: model(ids), backend="attnres", options={"inner": "eager"})
    elif how == "part of a module":
        call = around = nn.Sequential(model)
    with ac.depth_weights(around) as w:
        with torch.inference_mode(how == "inference mode"), torch.autocast("cpu", enabled=how == "autocast"):
            call(ids)
        call(ids)
    assert w.reads[0].tokens == 2 * ids.numel()
    assert all(sum(weights) == pytest.approx(1, abs=1e-6) for weights in w.weights)


def test_frozen_model_needs_no_gradient_while_it_is_recorded() -> None:
    model, ids = prepared().requires_grad_(False), tokens()
    with ac.depth_weights(model) as w:
        assert not model(ids).requires_grad
    assert w.gradient_norm == (None,) * LAYERS


class Mixing(nn.Module):
    """Sublayers by their name: ``conv`` shifts tokens, ``zero`` attends with a zero output, ``moe`` routes tokens."""

    def __init__(self, kinds: tuple[str, ...], width: int = 8) -> None:
        super().__init__()
        self.kinds = kinds
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in kinds)
        self.linear = nn.ModuleList(nn.Linear(width, width) for _ in kinds)
        self.last = nn.LayerNorm(width)
        for kind, linear in zip(kinds, self.linear, strict=True):
            if kind == "zero":
                nn.init.zeros_(linear.weight)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for kind, norm, linear in zip(self.kinds, self.norms, self.linear, strict=True):
            x = x + linear(self.mixed(kind, norm(x)))
        return self.last(x)

    def mixed(self, kind: str, x: Tensor) -> Tensor:
        if kind == "conv":
            return nn.functional.pad(x, (0, 0, 1, -1)) + x
        if kind == "zero":
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        if kind == "moe":
            flat = x.flatten(0, 1)
            order = flat[:, 0].argsort()
            return torch.zeros_like(flat).index_copy(0, order, flat[order] * 2).view_as(x)
        return x.relu()


def test_sublayers_are_told_apart_by_what_they_do() -> None:
    kinds = ("mlp", "conv", "moe", "zero", "mlp")
    model = prepared(Mixing(kinds), block_size=1)
    with ac.depth_weights(model) as w:
        model(tokens(length=1)[:1])
        assert {write.sublayer for write in w.writes} == {"unknown"}, "one token cannot tell"
        model(tokens())
    found = [{"conv": "attention", "zero": "attention"}.get(kind, "mlp") for kind in kinds]
    assert [write.sublayer for write in w.writes] == found
    assert [read.before for read in w.reads] == [*found[1:], "output"]


def test_model_that_refuses_nan_is_recorded_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(PreNorm):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            for block in self.blocks:
                y = block.norm(x)
                torch._assert_async(y.isfinite().all())
                x = x + block.mlp(y)
            return self.head(self.norm(x))

    model = prepared(Picky())
    with ac.depth_weights(model) as w:
        model(tokens())
    assert {write.sublayer for write in w.writes} == {"unknown"}
    assert "does not run on NaN" in caplog.text


def test_two_models_at_once_and_one_model_not_twice() -> None:
    one, other, ids = prepared(), prepared(), tokens()
    with ac.depth_weights(one) as w, ac.depth_weights(other) as v:
        one(ids)
        with pytest.raises(RecordingError, match="being recorded already"), ac.depth_weights(one):
            pass
        one(ids)
        other(ids)
    assert (w.reads[0].tokens, v.reads[0].tokens) == (2 * ids.numel(), ids.numel())


def test_error_inside_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = prepared(), tokens()
    before = train(model, model, ids)

    def fail(*args: object) -> None:
        raise RuntimeError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(graph, "record", fail)
        with pytest.raises(RuntimeError, match="no space left"), ac.depth_weights(model):
            model(ids)
    assert all_equal(before, train(model, model, ids))
    with ac.depth_weights(model) as w:
        assert all_equal(before, train(model, model, ids))
    assert w.reads[0].tokens == ids.numel()


def test_what_cannot_be_recorded_is_said() -> None:
    with pytest.raises(NotPreparedError, match=r"attnres_compile\.prepare"), ac.depth_weights(PreNorm()):
        pass
    model = prepared()
    with (
        pytest.raises(RecordingError, match="holds 2 prepared models"),
        ac.depth_weights(nn.ModuleList([model, prepared()])),
    ):
        pass
    with pytest.raises(ConfigError, match="every=0"), ac.depth_weights(model, every=0):
        pass
    with ac.depth_weights(model) as w, pytest.raises(RecordingError, match="nothing has been recorded of PreNorm"):
        print(w)
