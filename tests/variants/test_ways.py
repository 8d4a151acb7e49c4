"""Every way to run a model, by any mechanism: layers compiled alone, checkpoints, regions, pipeline chunks, kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import attnres_compile as ac
from attnres_compile.pipelines.build import CutOptions, build_chunks, leaves_by_name
from attnres_compile.pipelines.chunk_module import ChunkModule
from attnres_compile.pipelines.errors import StageError
from attnres_passes.ranks.layout import StageLayout
from tests.variants.compiled import checkpointed, in_regions, per_layer
from tests.variants.toy import VARIANTS, Toy, by_hand, randomise, reads_of, states, toy

ALL = VARIANTS[-1]
KEYED = {"key_norm": "plain", "logit_scale": 0.5, "window": 1}
"""What schedules and generated kernels compute."""


def prepared(variant: dict[str, Any], dtype: torch.dtype = torch.float64) -> Toy:
    model = toy(4).to(dtype)
    ac.prepare(model, (states().to(dtype),), block_size=1, **variant)
    randomise(model)
    return model


@pytest.mark.parametrize("variant", [KEYED, ALL], ids=["keyed", "all"])
@pytest.mark.parametrize("way", [per_layer, checkpointed, in_regions])
def test_outputs_and_gradients(way: Callable[[Toy], None], variant: dict[str, Any]) -> None:
    """Behind layers that are compiled by themselves, the last norm is run by Python."""
    torch.compiler.reset()
    model, x = prepared(variant), states()
    plain = copy.deepcopy(model)
    expected = by_hand(plain, x, reads_of(plain), 1, **variant)
    expected.square().sum().backward()
    way(model)
    found = model(x)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("variant", [KEYED, ALL], ids=["keyed", "all"])
def test_pipeline_chunks(variant: dict[str, Any]) -> None:
    variant = {name: value for name, value in variant.items() if name != "window"}
    model, x = prepared(variant), states()
    chunks = build_chunks(model, (x,), {}, CutOptions(StageLayout(2, 1)))
    modules = [ChunkModule(bodies) for bodies in chunks.bodies]
    known: dict[Any, Any] = {}
    output: Any = ()
    for module in modules:
        plan = module._content.plan
        known.update(zip(plan.arrives, output, strict=True))
        arrives = [known[key] for key in plan.arrives]
        given = module(*arrives, cached=tuple(known[key] for key in plan.cached), **leaves_by_name((x,), {}))
        output = given if isinstance(given, tuple) else (given,)
    torch.testing.assert_close(output[0], by_hand(model, x, reads_of(model), 1, **variant), rtol=1e-9, atol=1e-9)
    whole = {name for module in modules for name in module.state_dict()}
    assert whole == model.state_dict().keys()


def test_no_pipeline_with_a_window() -> None:
    with pytest.raises(StageError, match=r"^window=1 leaves blocks out of reads, and a hop of the pipeline"):
        build_chunks(prepared(KEYED), (states(),), {}, CutOptions(StageLayout(2, 1)))


@pytest.mark.interpreter
def test_on_generated_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_KERNELS", "triton")
    model, x = prepared(KEYED, torch.float32), states().float()
    wide = copy.deepcopy(model).double()
    expected = by_hand(wide, x.double(), reads_of(wide), 1, **KEYED)
    expected.square().sum().backward()
    model.compile(backend="attnres", options={"inner": "eager"})
    found = model(x)
    found.square().sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for (name, one), other in zip(model.named_parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4, msg=name)
    with torch.no_grad():  # where reads make their own logits
        torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
