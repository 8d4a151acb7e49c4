"""Readers that work along another axis than the last one show that the features are not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from torch import Tensor

from tests.passes.helpers import Function, reads_of, sample

Reader = Callable[[Function, int, Tensor], Tensor]


@pytest.mark.parametrize(
    "reader",
    [
        lambda self, k, x: F.group_norm(x, 1, eps=1e-9),
        lambda self, k, x: F.layer_norm(x.transpose(1, 2), (3,), eps=1e-9).transpose(1, 2),
        lambda self, k, x: F.layer_norm(x.permute(0, 2, 1), (3,), eps=1e-9).permute(0, 2, 1),
    ],
    ids=["group_norm", "transpose_and_layer_norm", "permute_and_layer_norm"],
)
def test_reader_along_another_axis_shows_channels_first(reader: Reader) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(2):
            x = x + reader(self, k, x) * x.new_ones(1)
        return x

    trace, reads = reads_of(model)
    assert reads.channels_first is not None
    assert trace.ops[reads.channels_first].name in (
        "aten.native_group_norm",
        "aten.native_layer_norm",
    )


@pytest.mark.parametrize("normalize", [F.instance_norm, lambda x: F.group_norm(x, 2)])
def test_convolution_on_the_state_shows_channels_first(normalize: Callable[[Tensor], Tensor]) -> None:
    kernel = sample(4, 4, 3)

    def model(self: Function, x: Tensor, kernel: Tensor) -> Tensor:
        for _ in range(2):
            x = x + F.conv1d(normalize(x), kernel, padding=1)
        return x.mean(-1)

    _, reads = reads_of(model, sample(2, 4, 6), kernel)
    assert reads.channels_first is not None


def test_permuted_layer_norm_back_to_the_last_axis_is_no_sign() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x.transpose(0, 1))).transpose(0, 1)
        return self.norm[-1](x)

    assert reads_of(model)[1].channels_first is None
