"""Prepared models under several plans, for the tests of saving."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import attnres_compile as ac
from tests.end_to_end.models import PreNorm, randomize, tokens

SAVED = {"block_size": 1, "scale": "sum"}
"""Options of the model that is saved."""

OTHERS = [
    ({"block_size": 1}, "scale='sum' was saved, this model has scale='mean'"),
    ({**SAVED, "eps": 1e-5}, "eps=1e-06 was saved, this model has eps=1e-05"),
    ({**SAVED, "block_size": 2}, r"block_size 1 \(num_blocks 3\) was saved, this model has 2 \(num_blocks 2\)"),
]
"""Options under which the parameters have the same names and shapes, and what an error says of them."""


def prepared(seed: int = 0, **options: Any) -> PreNorm:
    """A model of its own, with other values for another seed."""
    model = copy.deepcopy(_first(tuple(options.items())))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    randomize(model)
    return model


@functools.cache
def _first(options: tuple[tuple[str, Any], ...]) -> PreNorm:
    """Analysed once: these tests need many."""
    model = PreNorm()
    ac.prepare(model, (tokens(),), **dict(options))
    return model


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
