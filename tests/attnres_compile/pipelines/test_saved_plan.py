"""Each part of a pipeline says in its state dict what its parameters mean, and refuses those of another plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.model.errors import SavedStateError
from attnres_compile.model.plan_tensor import facts_in, facts_of
from attnres_compile.pipelines.pipeline import pipeline
from attnres_compile.pipelines.rank import Pipeline
from tests.attnres_compile.api.plans import one_process
from tests.attnres_compile.pipelines.models import Toy, data

TOKENS = data(0, 4)[0]
PLAN = "attnres.plan_tensor"


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    with one_process():
        yield


def prepared(device: str = "cpu", **options: Any) -> nn.Module:
    with torch.device(device):
        model = Toy(4)
    ac.prepare(model, (TOKENS.to(device),), **options)
    return model


def pipe_of(model: nn.Module) -> Pipeline:
    return pipeline(model, (TOKENS,), virtual=2, microbatches=2, device="cpu", inner="eager")


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.full_like(value, 2.0) for name, value in model.state_dict().items() if name != PLAN} | {
        PLAN: model.get_buffer(PLAN)
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_same_plan_loads_and_another_is_refused(device: str) -> None:
    model = prepared(device, block_size=2)
    pipe = pipe_of(model)
    assert pipe.state_dict().keys() == model.state_dict().keys()
    assert facts_in(pipe.state_dict()[PLAN]) == facts_of(model.attnres.plan)
    before = {name: value.clone() for name, value in pipe.state_dict().items()}
    other = prepared(block_size=2, scale="sum")
    with pytest.raises(SavedStateError, match="scale='sum' was saved, this model has scale='mean'"):
        pipe.load_state_dict(state_of(other))
    # What was never given a value may hold NaN.
    torch.testing.assert_close(pipe.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    pipe.load_state_dict(state_of(prepared(block_size=2)))
    assert all(bool((value == 2.0).all()) for name, value in pipe.state_dict().items() if name != PLAN)
    with pytest.raises(SavedStateError, match="scale='mean' was saved, this model has scale='sum'"):
        other.load_state_dict(pipe.state_dict())


def test_a_state_dict_of_version_0_1_0_is_loaded_with_a_warning() -> None:
    pipe = pipe_of(prepared(block_size=2))
    state = state_of(prepared(block_size=2))
    del state[PLAN]
    with pytest.warns(UserWarning, match=r"no attnres\.plan_tensor"):
        pipe.load_state_dict(state)
    assert all(bool((value == 2.0).all()) for name, value in pipe.state_dict().items() if name != PLAN)
