"""What only resembles a norm is not taken for one, and the reason is said."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnres_passes.analyses.norms.norm_behind import Norm, NotFused, norms_behind
from tests.passes.analyses.norms.norm_models import (
    NO_NORM,
    WIDTH,
    Function,
    Written,
    dropped,
    root_mean_square,
    spread,
    stacked,
    target_of,
    unwidened,
    written,
)


def of_heads(self: Written, x: Tensor) -> Tensor:
    heads = x.unflatten(-1, (2, WIDTH // 2))
    return F.rms_norm(heads, (WIDTH // 2,), eps=1e-6).flatten(-2)


def of_groups(self: Written, x: Tensor) -> Tensor:
    return F.group_norm(x.flatten(0, 1), 2).view_as(x)


def of_half(self: Written, x: Tensor) -> Tensor:
    return torch.cat([F.layer_norm(x[..., : WIDTH // 2], (WIDTH // 2,)), x[..., WIDTH // 2 :]], -1)


def of_batch(self: Written, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (0, 1), correction=0)
    return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


def detached(self: Written, x: Tensor) -> Tensor:
    return x * (x.detach().square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def constant(self: Written, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,)).detach()


def in_place(self: Written, x: Tensor) -> Tensor:
    centred = x.clone()
    centred -= x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def read_twice(self: Written, x: Tensor) -> Tensor:
    inverse = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return ((x * inverse * self.weight) @ self.matrix) * inverse


def under_no_grad(self: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.layer_norm(x, (WIDTH,), self.weight)


def partly_under_no_grad(self: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        inverse = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return x * inverse


def under_autocast(self: Written, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.layer_norm(x, (WIDTH,), self.weight)


def of_fixed_shape(self: Written, x: Tensor) -> Tensor:
    return F.layer_norm(x.reshape(20, WIDTH), (WIDTH,)).reshape(4, 5, WIDTH)


MODES = "the norm and the read are under different grad or autocast modes"
REFUSED: dict[str, tuple[Function, str]] = {
    "a linear layer": (lambda self, x: x @ self.matrix, NO_NORM),
    "L2 normalisation": (lambda self, x: F.normalize(x, dim=-1), NO_NORM),
    "clamped root mean square": (lambda self, x: F.normalize(x, dim=-1) * WIDTH**0.5, NO_NORM),
    "softmax": (lambda self, x: x.softmax(-1), NO_NORM),
    "eps beside the deviation": (lambda self, x: (x - x.mean(-1, keepdim=True)) / (spread(x).sqrt() + 1e-6), NO_NORM),
    "eps behind the root": (lambda self, x: x * (x.square().mean(-1, keepdim=True).rsqrt() + 1e-6), NO_NORM),
    "no eps but a bound": (
        lambda self, x: x * x.square().mean(-1, keepdim=True).clamp(min=1e-6).rsqrt(),
        NO_NORM,
    ),
    "unbiased variance": (
        lambda self, x: (x - x.mean(-1, keepdim=True)) * (spread(x, 1) + 1e-5).rsqrt(),
        NO_NORM,
    ),
    "mean not taken off": (lambda self, x: x * (spread(x) + 1e-5).rsqrt(), NO_NORM),
    "mean taken off in part": (
        lambda self, x: (x - x.mean(-1, keepdim=True)) * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
        NO_NORM,
    ),
    "mean over everything": (lambda self, x: x * (x.square().mean() + 1e-6).rsqrt(), NO_NORM),
    "largest element": (lambda self, x: x / (x.abs().amax(-1, keepdim=True) + 1e-6), NO_NORM),
    "eps of the sum": (lambda self, x: x * WIDTH**0.5 * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt(), NO_NORM),
    "heads": (of_heads, NO_NORM),
    "groups": (of_groups, NO_NORM),
    "half of the features": (of_half, NO_NORM),
    "batch statistics": (of_batch, NO_NORM),
    "a constant factor": (lambda self, x: F.layer_norm(3 * x, (WIDTH,), eps=1e-2), NO_NORM),
    "weight before the statistics": (lambda self, x: F.layer_norm(x * self.weight, (WIDTH,)), NO_NORM),
    "fixed shapes": (of_fixed_shape, "what follows cannot be executed by itself (RuntimeError)"),
    "dropout inside": (dropped, "the norm draws random numbers"),
    "in place": (in_place, "a value inside the norm is changed in place"),
    "detached statistics": (detached, "the gradient is not that of a norm"),
    "inner value read outside": (read_twice, "a value inside the norm has two readers, one of them outside"),
    "under no_grad": (under_no_grad, MODES),
    "statistics under no_grad": (partly_under_no_grad, MODES),
    "under autocast": (under_autocast, MODES),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    assert set(written(function).verdicts()) == {NotFused(reason)}


def test_detached_norm_is_recognised_without_the_detach() -> None:
    assert {target_of(norm.output) for norm in written(constant).norms()} == {"layer_norm"}


@pytest.mark.parametrize("shape", [(1, WIDTH), (1, 1, WIDTH)])
def test_weight_with_more_axes_stays_outside(shape: tuple[int, ...]) -> None:
    def function(self: Written, x: Tensor) -> Tensor:
        return root_mean_square(x) * self.weight.reshape(shape)

    assert {norm.weight for norm in written(function).norms()} == {None}


def test_half_precision_that_rounds_the_statistics_away() -> None:
    """Squares of numbers around a thousand overflow in fp16."""
    reasons = {verdict.reason for verdict in written(unwidened, torch.float16).verdicts()}
    assert reasons == {"the norm loses more than four roundings would"}


def test_rounding_to_half_precision_in_single_precision() -> None:
    def function(self: Written, x: Tensor) -> Tensor:
        return F.layer_norm(x.bfloat16(), (WIDTH,)).float()

    assert {verdict.reason for verdict in written(function).verdicts()} == {NO_NORM}


def test_output_of_another_dtype() -> None:
    def function(self: Written, x: Tensor) -> Tensor:
        return (F.layer_norm(x.float(), (WIDTH,)) @ self.matrix.float()).bfloat16()

    assert set(written(function, torch.bfloat16).verdicts()) == {NotFused(NO_NORM)}


def test_unnormed_read() -> None:
    found = stacked(lambda: nn.LayerNorm(WIDTH))
    reads = tuple(dataclasses.replace(read, normed=read.state != 2) for read in found.plan.streams[0].reads)
    plan = dataclasses.replace(found.plan, streams=(dataclasses.replace(found.plan.streams[0], reads=reads),))
    verdicts = list(norms_behind(found.gm, plan).values())
    assert [isinstance(verdict, Norm) for verdict in verdicts] == [True, False, True]
    assert verdicts[1] == NotFused("the read is not normed")


def test_double_precision() -> None:
    verdicts = stacked(lambda: nn.LayerNorm(WIDTH), torch.float64).verdicts()
    assert verdicts == [NotFused("fp64 has no generated kernel")] * 3
