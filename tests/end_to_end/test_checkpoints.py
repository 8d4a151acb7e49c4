"""Layers under activation checkpointing: values, gradients, what the backward is kept and what it computes again."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

import attnres_compile as ac
from tests.end_to_end.checkpointed import PRODUCTS, WAYS, Step, step
from tests.end_to_end.models import Block, PreNorm, randomize, tokens
from tests.end_to_end.test_against_reference import LAYERS, gpt2, hand_written, llama, relative
from tests.reference.llama import widen_norms

IDS = torch.randint(0, 61, (2, 11), generator=torch.Generator().manual_seed(0))
DIRECTION = torch.randn(2, 11, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
BLOCKS = ({"num_blocks": 2}, {"num_blocks": 4}, {"block_size": 5})
"""Of 6 writes, two a layer: blocks that end inside layer 2, at layers' borders, and inside the last layer."""


def qwen3() -> PreTrainedModel:
    config = Qwen3Config(
        num_hidden_layers=LAYERS,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=61,
        max_position_embeddings=16,
    )
    return Qwen3ForCausalLM(config)


def layers_of(model: nn.Module) -> list[nn.Module]:
    return list(model.transformer.h if hasattr(model, "transformer") else model.model.layers)


def prepared(build: Callable[[], PreTrainedModel], blocks: dict[str, int]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.use_cache = False
    if model.config.model_type != "gpt2":
        widen_norms(model)
    ac.prepare(model, kwargs={"input_ids": IDS}, **blocks)
    torch.manual_seed(1)
    randomize(model)
    return model.train()


def loss_of(model: nn.Module) -> Tensor:
    return (model(input_ids=IDS).logits * DIRECTION).sum()


def compiled(model: nn.Module, inner: str = "aot_eager") -> nn.Module:
    torch.compiler.reset()
    model.compile(backend="attnres", options={"inner": inner})
    return model


@functools.cache
def expected(build: Callable[[], PreTrainedModel], blocks: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients: by hand and uncompiled where there is such a form, else of the whole graph."""
    model = prepared(build, BLOCKS[blocks])
    if build is not qwen3:
        size = model.attnres.plan.streams[0].block_size
        logits, grads = hand_written(model, IDS, size, DIRECTION)
        return (logits * DIRECTION).sum(), grads
    found = step(compiled(model), loss_of)
    return found.loss, found.grads


def check(found: Step, loss: Tensor, grads: dict[str, Tensor]) -> None:
    assert relative(found.loss, loss) < 1e-10
    assert found.grads.keys() == grads.keys()
    assert sum("attnres" in name for name in grads) >= 2 * (2 * LAYERS - 1)
    for name, grad in grads.items():
        assert relative(found.grads[name], grad) < 1e-10, name


@pytest.mark.parametrize("way", ["non_reentrant", "reentrant", "every_second", "selective"])
@pytest.mark.parametrize("blocks", range(len(BLOCKS)), ids=lambda k: str(BLOCKS[k]))
@pytest.mark.parametrize("build", [gpt2, llama, qwen3])
def test_loss_and_every_gradient(build: Callable[[], PreTrainedModel], blocks: int, way: str) -> None:
    model = prepared(build, BLOCKS[blocks])
    WAYS[way](model, layers_of(model))
    check(step(compiled(model), loss_of), *expected(build, blocks))
    assert ac.status(model).state == "rewritten"


@pytest.mark.parametrize("way", ["every_second_product", "no_early_stop", "wrapper", "wrapper_reentrant"])
def test_other_ways(way: str) -> None:
    model = prepared(gpt2, BLOCKS[0])
    WAYS[way](model, layers_of(model))
    check(step(compiled(model), loss_of), *expected(gpt2, 0))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", [gpt2, llama, qwen3])
def test_checkpointing_of_transformers(build: Callable[[], PreTrainedModel], reentrant: bool) -> None:
    model = prepared(build, BLOCKS[0])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    found = step(compiled(model), loss_of)
    check(found, *expected(build, 0))
    assert found.recomputed["attnres.inter_block.default"] > 0


def test_run_by_python() -> None:
    model = prepared(gpt2, BLOCKS[0])
    WAYS["selective"](model, layers_of(model))
    check(step(compiled(model, "eager"), loss_of), *expected(gpt2, 0))


# What is kept, and what is computed again


WIDTH, TOKENS, DEPTH = 256, 128, 8


def toy(way: str | None, blocks: dict[str, int] | None, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = PreNorm(DEPTH, WIDTH, dropout)
    if blocks is not None:
        ac.prepare(model, (tokens(1, TOKENS),), **blocks)
        randomize(model)
    if way is not None:
        WAYS[way](model, [block for block in model.blocks if isinstance(block, Block)])
    return model


def toy_loss(model: nn.Module) -> Tensor:
    return model(torch.arange(TOKENS).view(1, TOKENS) % 13).square().mean()


@functools.cache
def plain_step(way: str) -> Step:
    torch.compiler.reset()
    model = toy(way, None)
    model.compile(backend="aot_eager")
    return step(model, toy_loss)


KEPT_WAYS = ["non_reentrant", "reentrant", "selective", "every_second_product", "wrapper"]


@pytest.mark.parametrize("blocks", [{"num_blocks": 3}, {"block_size": 5}], ids=str)
@pytest.mark.parametrize(
    ("way", "schedule"),
    [*((way, "auto") for way in KEPT_WAYS), ("non_reentrant", "direct"), ("non_reentrant", "naive")],
)
def test_the_stream_is_kept_once_a_layer_and_a_block_once(way: str, blocks: dict[str, int], schedule: str) -> None:
    plain = plain_step(way)
    model = toy(way, blocks)
    num_blocks = model.attnres.plan.streams[0].num_blocks
    torch.compiler.reset()
    model.compile(backend="attnres", options={"inner": "aot_eager", "schedule": schedule})
    found = step(model, toy_loss)

    def states(of: Step) -> int:
        return sum(size == TOKENS * WIDTH * 4 for _, size in of.kept)

    assert states(plain) >= DEPTH
    assert states(found) - states(plain) <= num_blocks
    allowed = num_blocks * TOKENS * WIDTH * 4
    assert found.kept_bytes - plain.kept_bytes <= allowed + 0.02 * plain.kept_bytes


@pytest.mark.parametrize("way", [*KEPT_WAYS, "every_second"])
def test_the_backward_computes_again_what_it_does_in_the_plain_model(way: str) -> None:
    plain = plain_step(way)
    found = step(compiled(toy(way, {"num_blocks": 3})), toy_loss)
    for operator in (*map(str, PRODUCTS), "aten.gelu.default", "aten.native_layer_norm.default"):
        assert found.recomputed[operator] == plain.recomputed[operator], operator
    if way == "non_reentrant":
        # Each sublayer's first product again, and two for gradients of each product.
        assert sum(plain.recomputed[str(operator)] for operator in PRODUCTS) >= 5 * DEPTH
        assert found.recomputed["attnres.inter_block.default"] == DEPTH - 1


@pytest.mark.parametrize("inner", ["aot_eager", "eager"])
def test_dropout_is_computed_again_with_its_mask(inner: str) -> None:
    """Half of each sublayer's output is dropped. With another mask in the backward, the loss would not follow it."""
    model = compiled(toy("non_reentrant", {"num_blocks": 3}, dropout=0.5).double().train(), inner)

    def seeded(model: nn.Module) -> Tensor:
        torch.manual_seed(3)
        return toy_loss(model)

    grads = step(model, seeded).grads
    name = "blocks.4.mlp.2.weight"
    weight = model.get_parameter(name)
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    losses = []
    for way in (1e-6, -1e-6):
        with torch.no_grad():
            weight += way * direction
        losses.append(seeded(model).detach())
        with torch.no_grad():
            weight -= way * direction
    slope = (losses[0] - losses[1]) / 2e-6
    torch.testing.assert_close((grads[name] * direction).sum(), slope, rtol=1e-5, atol=1e-12)


def test_without_gradients_nothing_is_checkpointed() -> None:
    model = compiled(toy("non_reentrant", {"num_blocks": 3}))
    ids = tokens(1, TOKENS)
    with torch.no_grad():
        found = model(ids)
    torch.testing.assert_close(found, compiled(toy(None, {"num_blocks": 3}))(ids).detach())


# Paths of modules


@pytest.mark.parametrize("order", ["wrapped first", "prepared first"])
def test_a_wrapper_is_no_module_of_the_model(order: str) -> None:
    """Prepared and wrapped in either order, the plan names the modules of the user, as the state dict does."""
    plain = toy(None, {"num_blocks": 3})
    model = toy(None, {"num_blocks": 3} if order == "prepared first" else None)
    WAYS["wrapper"](model, list(model.blocks))
    if order == "wrapped first":
        ac.prepare(model, (tokens(1, TOKENS),), num_blocks=3)
    model.load_state_dict(copy.deepcopy(plain.state_dict()))
    ours, theirs = (x.attnres.plan.streams[0] for x in (model, plain))
    assert [write.module for write in ours.writes] == [write.module for write in theirs.writes]
    assert [read.module for read in ours.reads] == [read.module for read in theirs.reads]
    found, wanted = step(compiled(model), toy_loss), step(compiled(plain), toy_loss)
    torch.testing.assert_close(found.loss, wanted.loss)
    for name, grad in wanted.grads.items():
        torch.testing.assert_close(found.grads[name], grad)


# The public verbs


class Around(PreNorm):
    """Checkpoints in the forward: keywords, a tuple of results, a closure, and a constant among them."""

    recomputes = True

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        scale = x.mean()
        for block in self.blocks:

            def run(state: Tensor, *, shift: Tensor, block: nn.Module = block) -> tuple[Tensor, Any]:
                return block(state), (state.shape[1], shift * scale)

            given = (checkpoint, run) if self.recomputes else (run,)
            options = {"use_reentrant": False} if self.recomputes else {}
            x, (length, extra) = functools.partial(*given)(x, shift=scale, **options)
            assert length == x.shape[1]
        return self.head(self.norm(x)) + extra


@pytest.mark.parametrize("dynamic", [False, True])
def test_whatever_a_body_takes_and_gives(dynamic: bool) -> None:
    torch.manual_seed(0)
    model = Around(3).double()
    ids = tokens(2, 6)
    assert ac.verify(model, (ids,), num_blocks=2).passed
    assert len(ac.explain(model, (ids,), num_blocks=2).plan.streams[0].writes) == 3
    ac.prepare(model, (ids,), num_blocks=2)
    randomize(model)
    torch.compiler.reset()
    model.compile(backend="attnres", options={"inner": "aot_eager"}, dynamic=dynamic)
    lengths = (6, 4) if dynamic else (6,)
    for length in lengths:
        found = model(ids[:, :length])
        whole = Around(3).double()
        whole.recomputes = False
        ac.prepare(whole, (ids,), num_blocks=2)
        whole.load_state_dict(model.state_dict())
        whole.compile(backend="attnres", options={"inner": "eager"})
        torch.testing.assert_close(found, whole(ids[:, :length]), rtol=1e-12, atol=1e-12)


def test_overhead_counts_what_is_inside() -> None:
    plain, checkpointed = toy(None, None), toy("wrapper", None)
    rows = [ac.overhead(model, (tokens(1, TOKENS),)).to_dict()["rows"] for model in (plain, checkpointed)]
    # Reads of several layers share no phase 1 if each layer is computed again by itself, so theirs are other numbers.
    counted = [[(row["metric"], row["plain"]) for row in of_model] for of_model in rows]
    assert counted[0] == counted[1]
