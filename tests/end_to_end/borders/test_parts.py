"""Models in parts equal the whole graph in one process: loss and every gradient, fp64, at 1e-10."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import attnres_compile as ac
from tests.end_to_end.borders.models import MODELS, assert_same, broken, layers, per_block, prepared, step, whole
from tests.end_to_end.guarded_model import randomize

BLOCKS = {"2 blocks": {"num_blocks": 2}, "4 blocks": {"num_blocks": 4}, "ends inside a layer": {"block_size": 3}}


def _every(model: torch.nn.Module, stride: int) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for number, layer in enumerate(layers(model)):
        layer.gradient_checkpointing = number % stride == 0


CHECKPOINTS = {
    "none": lambda model: None,
    "layer": lambda model: _every(model, 1),
    "2nd": lambda model: _every(model, 2),
}


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("name", MODELS)
def test_parts_equal_the_whole(name: str, blocks: str) -> None:
    torch.compiler.reset()
    wanted = step(whole(prepared(name, **BLOCKS[blocks])))
    for checkpoint, enable in CHECKPOINTS.items():
        for cut in (per_block, broken):
            if checkpoint == "2nd" and cut is broken:
                continue  # both borders of it are in the cells beside it
            torch.compiler.reset()
            model = prepared(name, **BLOCKS[blocks])
            enable(model)
            assert_same(step(cut(model)), wanted)
            status = ac.status(model)
            assert status.state == "rewritten", (checkpoint, cut, status)
            assert status.plain_calls == status.refused_calls == 0
            assert status.rewritten_calls == 1


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_inner_compilers(inner: str) -> None:
    torch.compiler.reset()
    wanted = step(whole(prepared("llama", num_blocks=2)))
    model = prepared("llama", num_blocks=2)
    for layer in layers(model):
        layer.compile(backend="attnres", options={"inner": inner})
    found = step(model)
    # Llama takes its norms in fp32, whatever the model is in, and Inductor sums in another order.
    torch.testing.assert_close(found[0], wanted[0], atol=1e-7, rtol=0)
    for gradient_name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][gradient_name], gradient, atol=1e-6, rtol=1e-6)


def test_more_layers_than_the_limit_of_recompiles() -> None:
    """Each layer has graphs of its own, which do not count against one another."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        model = per_block(prepared("llama", num_blocks=2))
        step(model)
        step(model)
    assert ac.status(model).rewritten_calls == 2


def test_layers_in_regions(caplog: pytest.LogCaptureFixture) -> None:
    """A compiled layer is cut at its reads, too."""
    torch.compiler.reset()
    caplog.set_level("INFO", "attnres_compile")
    wanted = step(whole(prepared("gpt2", num_blocks=2)))
    model = prepared("gpt2", num_blocks=2)
    for layer in layers(model):
        layer.compile(backend="attnres", options={"inner": "aot_eager", "regions": True})
    assert_same(step(model), wanted)
    assert caplog.text.count("kinds of them compiled, each once") >= 2


def _kinds(caplog: pytest.LogCaptureFixture) -> list[int]:
    """How many kinds of parts were compiled for each graph, in order."""
    return [int(number) for number in re.findall(r"(\d+) kinds of them compiled", caplog.text)]


def test_layers_share_what_is_alike_in_them(caplog: pytest.LogCaptureFixture) -> None:
    """What is compiled does not grow with depth, whichever layer it came in first, and for all sizes of a batch."""
    caplog.set_level("INFO", "attnres_compile")
    compiled = {}
    for depth in (4, 8):
        torch.compiler.reset()
        caplog.clear()
        model = prepared("llama", depth, num_blocks=2)
        for layer in layers(model):
            layer.compile(backend="attnres", options={"inner": "aot_eager"})
        found = step(model)
        kinds = _kinds(caplog)
        assert len(kinds) == depth
        compiled[depth] = sum(kinds)
        torch.compiler.reset()
        assert_same(found, step(whole(prepared("llama", depth, num_blocks=2))))
    # The attention, the feed-forward, and what is computed of the positions in the first layer alone.
    assert compiled[4] == compiled[8] <= 3


def test_layers_share_nothing_between_modes_of_torch(caplog: pytest.LogCaptureFixture) -> None:
    """What was compiled under other settings, which a compiler may look at, serves nobody else."""
    caplog.set_level("INFO", "attnres_compile")
    torch.compiler.reset()
    model = prepared("gpt2", 2, num_blocks=2)
    for layer in layers(model):
        layer.compile(backend="attnres", options={"inner": "aot_eager"})
    step(model)
    torch.use_deterministic_algorithms(True)
    try:
        step(model)
    finally:
        torch.use_deterministic_algorithms(False)
    first, second, under_mode, second_under_mode = _kinds(caplog)
    assert first == under_mode > 0
    assert second == second_under_mode == 0


def test_reads_that_begin_on_another_line_in_another_dtype() -> None:
    """Llama's norm casts to fp32, which is an operation of a model in fp64, whose plan it was, and none in fp32."""
    torch.compiler.reset()
    model = prepared("llama", 2, num_blocks=2).float()
    expected = step(whole(model))
    torch.compiler.reset()
    again = per_block(prepared("llama", 2, num_blocks=2).float())
    found = step(again)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=5e-5, rtol=1e-4)
    assert ac.status(again).rewritten_calls == 1


class Watched(nn.Module):
    """A layer that norms by itself, and may look at what comes in before a graph break."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.seen: list[torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.seen is not None:
            self.seen.append(x * self.linear.bias)
            torch._dynamo.graph_break()
        return x + self.linear(nn.functional.layer_norm(x, (8,))).tanh()


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.norm = nn.ModuleList(Watched() for _ in range(3)), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def test_what_a_layer_sees_of_a_state_is_no_read_of_the_plan() -> None:
    """Another line of the module that reads, in a graph without the read: it sees the running sum."""
    torch.compiler.reset()
    x = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Stack().double()
    ac.prepare(model, (x,), block_size=1)
    randomize(model)
    states: list[torch.Tensor] = []
    for layer in model.layers:
        layer.compile(backend="attnres", options={"inner": "eager"})
        layer.register_forward_pre_hook(lambda layer, given: states.append(given[0]))
    expected = model(x)
    before, seen = states[:3], [[] for _ in model.layers]
    for layer, into in zip(model.layers, seen, strict=True):
        layer.seen = into
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=0)
    for state, layer, (found,) in zip(before, model.layers, seen, strict=True):
        torch.testing.assert_close(found, state * layer.linear.bias, atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", ["naive", "direct", "two_phase"])
def test_layers_take_the_schedule_that_they_are_compiled_with(
    schedule: str, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNRES_DUMP", str(tmp_path))
    torch.compiler.reset()
    model = prepared("gpt2", num_blocks=2)
    layer = layers(model)[1]
    for one in layers(model):
        one.compile(backend="attnres", options={"inner": "eager", **({"schedule": schedule} if one is layer else {})})
    step(model)
    texts = [path.read_text() for path in sorted(tmp_path.rglob("*lowered*"))]
    marks = {"naive": "naive.naive_read", "direct": "scheduled.direct_read", "two_phase": "two_phase.merge"}
    assert any(marks[schedule] in text for text in texts)
    if schedule != "two_phase":
        assert not all(marks[schedule] in text for text in texts)
