"""``regions=True``: what is alike in all layers is compiled once, and computes what the whole graph does."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import attnres_compile as ac
from tests.end_to_end.checkpointed import WAYS, step
from tests.end_to_end.models import randomize
from tests.end_to_end.test_against_reference import gpt2, hand_written, llama, relative
from tests.end_to_end.test_checkpoints import BLOCKS, DIRECTION, IDS, layers_of, loss_of, prepared, qwen3

KINDS = re.compile(r"regions=True: (\d+) parts, (\d+) kinds of them compiled, each once")


def in_parts(model: nn.Module, inner: str = "aot_eager", **options: Any) -> nn.Module:
    torch.compiler.reset()
    model.compile(backend="attnres", options={"inner": inner, "regions": True, **options})
    return model


@pytest.fixture
def counts(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[int, int]]]:
    """Parts and kinds of them of each graph since it was last called."""
    caplog.set_level(logging.INFO, "attnres_compile")

    def read() -> list[tuple[int, int]]:
        found = [(int(parts), int(kinds)) for parts, kinds in KINDS.findall(caplog.text)]
        caplog.clear()
        return found

    return read


@pytest.mark.parametrize(("build", "blocks"), [(gpt2, 0), (gpt2, 1), (gpt2, 2), (llama, 1), (qwen3, 1)])
def test_loss_and_gradients(build: Callable[[], PreTrainedModel], blocks: int) -> None:
    model = prepared(build, BLOCKS[blocks])
    found = step(in_parts(model), loss_of)
    if build is qwen3:
        torch.compiler.reset()
        whole = prepared(build, BLOCKS[blocks])
        whole.compile(backend="attnres", options={"inner": "aot_eager"})
        expected = step(whole, loss_of)
        loss, grads = expected.loss, expected.grads
    else:
        logits, grads = hand_written(model, IDS, model.attnres.plan.streams[0].block_size, DIRECTION)
        loss = (logits * DIRECTION).sum()
    assert relative(found.loss, loss) < 1e-10
    assert found.grads.keys() == grads.keys()
    for name, grad in grads.items():
        assert relative(found.grads[name], grad) < 1e-10, name


@pytest.mark.parametrize("schedule", ["direct", "two_phase"])
def test_every_schedule_can_be_cut(schedule: str) -> None:
    model = prepared(gpt2, BLOCKS[0])
    expected = step(in_parts(model), loss_of)
    found = step(in_parts(prepared(gpt2, BLOCKS[0]), schedule=schedule), loss_of)
    assert relative(found.loss, expected.loss) < 1e-10
    for name, grad in expected.grads.items():
        assert relative(found.grads[name], grad) < 1e-10, name


@pytest.mark.parametrize("way", ["non_reentrant", "selective"])
def test_checkpointed_layers(way: str) -> None:
    expected = step(in_parts(prepared(gpt2, BLOCKS[1])), loss_of)
    model = prepared(gpt2, BLOCKS[1])
    WAYS[way](model, layers_of(model))
    found = step(in_parts(model), loss_of)
    assert relative(found.loss, expected.loss) < 1e-10
    for name, grad in expected.grads.items():
        assert relative(found.grads[name], grad) < 1e-10, name


def test_inductor() -> None:
    model = prepared(gpt2, BLOCKS[0])
    expected = step(in_parts(model), loss_of)
    found = step(in_parts(prepared(gpt2, BLOCKS[0]), inner="inductor"), loss_of)
    assert relative(found.loss, expected.loss) < 1e-10
    for name, grad in expected.grads.items():
        assert relative(found.grads[name], grad) < 1e-10, name


def deep_gpt2(layers: int) -> PreTrainedModel:
    config = GPT2Config(n_layer=layers, n_embd=32, n_head=2, n_positions=16, vocab_size=61, use_cache=False)
    model = GPT2LMHeadModel(config)
    ac.prepare(model, kwargs={"input_ids": IDS}, num_blocks=4)
    randomize(model)
    return model


def test_what_is_compiled_does_not_grow_with_depth(counts: Callable[[], list[tuple[int, int]]]) -> None:
    """Embedding, attention, feed-forward and the head; by the definition, also reads of 2 to 5 sources."""
    for schedule, expected in (("auto", 4), ("naive", 8)):
        for layers in (8, 16):
            in_parts(deep_gpt2(layers), schedule=schedule)(input_ids=IDS)
        (parts, kinds), (parts_of_16, kinds_of_16) = counts()
        assert parts_of_16 > 1.8 * parts
        assert kinds == kinds_of_16 == expected


def test_sizes_may_change(counts: Callable[[], list[tuple[int, int]]]) -> None:
    model = in_parts(prepared(gpt2, BLOCKS[0]).eval())
    whole = prepared(gpt2, BLOCKS[0]).eval()
    found = [model(input_ids=IDS[:, :length].contiguous()).logits for length in (5, 7, 11)]
    torch.compiler.reset()
    whole.compile(backend="attnres", options={"inner": "aot_eager"})
    for logits, length in zip(found, (5, 7, 11), strict=True):
        assert relative(logits, whole(input_ids=IDS[:, :length].contiguous()).logits) < 1e-10
    assert len(counts()) == 2


def test_generation_with_a_static_cache() -> None:
    torch.manual_seed(0)
    model = gpt2().eval()
    expected = model.generate(IDS[:, :4], max_new_tokens=6, do_sample=False)
    ac.prepare(model, kwargs={"input_ids": IDS}, num_blocks=2, scale="sum")
    in_parts(model)
    generated = model.generate(IDS[:, :4], max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(generated, expected)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        count += 1
        return x + (self.linear(self.norm(x)) + count).tanh()


class Counting(nn.Module):
    """Every layer changes a tensor that the next one is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.zeros(1, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, count)
        return self.norm(x)


def test_a_graph_that_cannot_be_cut_says_so(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    model = Counting().double()
    ac.prepare(model, (x,), block_size=1)
    randomize(model)
    torch.compiler.reset()
    model.compile(backend="attnres", options={"inner": "aot_eager"})
    expected = model(x)
    found = in_parts(model)(x)
    assert relative(found, expected) < 1e-10
    (record,) = (record for record in caplog.records if "regions=True" in record.message)
    assert record.levelno == logging.WARNING
    assert "compiled as one: one sublayer changes in place what another one is given" in record.message
    assert re.search(r"test_regions\.py:\d+", record.message)


class Remembering(nn.Module):
    """Every layer adds to a buffer; with ``shared``, all to the same memory."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        memory = torch.zeros(3, 8)
        for index in range(3):
            self.register_buffer(f"memory_{index}", memory[0] if shared else memory[index].clone())

    def forward(self, x: Tensor) -> Tensor:
        for norm, linear, memory in zip(self.norms, self.linears, list(self.buffers()), strict=False):
            memory.add_(1.0)
            x = x + (linear(norm(x)) + memory).tanh()
        return self.norms[-1](x)


@pytest.mark.parametrize("shared", [False, True])
def test_what_layers_write_to(shared: bool, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(2, 3, 8)
    models = [Remembering(shared), Remembering(shared)]
    found = []
    for model, regions in zip(models, (False, True), strict=True):
        ac.prepare(model, (x,), block_size=1)
        torch.manual_seed(1)
        randomize(model)
        torch.compiler.reset()
        model.compile(backend="attnres", options={"inner": "aot_eager", "regions": regions})
        with torch.no_grad():
            found.append([model(x), model(x), model.memory_0, model.memory_2])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)
    assert ("changes in place" in caplog.text) == shared
