"""A stream that is concatenated with other tokens before it is normed, as class attention does (CaiT)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_passes.ir.plan import Reason
from tests.generated.stream import DepthStream
from tests.passes.helpers import (
    WIDTH,
    Function,
    added_parameters,
    analysed,
    assert_same,
    fresh_inputs,
    rewritten,
    run_with_gradients,
    sample,
)

Joined = Callable[[Function, int, Tensor], Tensor]


def layer_by_hand(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-12)


NORMS: dict[str, Joined] = {
    "layer_norm": lambda self, k, u: self.norm[k](u),
    "rms_norm": lambda self, k, u: F.rms_norm(u, (WIDTH,), self.norm[k].weight, 1e-12),
    "rms by hand": lambda self, k, u: u * torch.rsqrt(u.pow(2).mean(-1, keepdim=True) + 1e-12),
    "layer by hand": lambda self, k, u: layer_by_hand(u) * self.norm[k].weight,
    "normalize": lambda self, k, u: F.normalize(u, dim=-1),
}


def read(self: Function, normed: Tensor, k: int) -> Tensor:
    """One token made of all."""
    weights = torch.softmax(self.linear[k](normed) @ normed.transpose(1, 2), -1)
    return (weights @ normed)[:, :1]


def class_attention(norm: Joined) -> Callable[..., Tensor]:
    """A stack over tokens, then one of a class token that attends to both in each of its layers."""

    def model(self: Function, x: Tensor, token: Tensor) -> Tensor:
        x, token = x.sinh(), token.sinh()
        for k in range(2):
            x = x + self.linear[k](self.norm[k](x))
        for k in range(2):
            token = token + read(self, norm(self, k, torch.cat([token, x], 1)), k)
            token = token + self.linear[2](self.norm[2](token))
        return norm(self, 3, torch.cat([token, x], 1))

    return model


def by_hand(self: Function, norm: Joined, x: Tensor, token: Tensor, added: list[Tensor], size: int) -> Tensor:
    """The same with attention residuals: the last state of the tokens is read once for each concatenation."""
    tokens_reads = 2 * (1 + 3)
    stream = DepthStream(x.sinh(), size, added[:tokens_reads], 1e-6, "mean")
    for k in range(2):
        stream.write(self.linear[k](self.norm[k](stream.read())), "x + f")
    of_token = DepthStream(token.sinh(), size, added[tokens_reads:], 1e-6, "mean")
    for k in range(2):
        u = torch.cat([of_token.read(), stream.read()], 1)
        of_token.write(read(self, norm(self, k, u), k), "x + f")
        of_token.write(self.linear[2](self.norm[2](of_token.read())), "x + f")
    u = torch.cat([of_token.read(), stream.read()], 1)
    stream.finish()
    of_token.finish()
    return norm(self, 3, u)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_that_are_normed_by_themselves_are_normed(norm: str, size: int) -> None:
    """Both streams are rewritten, and equal the form written by hand, gradients too."""
    inputs = sample(2, 3, WIDTH), sample(2, 1, WIDTH, seed=2)
    model = Function(class_attention(NORMS[norm]))
    found, analysis, result = rewritten(model, *inputs, block_size=size)
    assert [len(stream.writes) for stream in analysis.plan.streams] == [2, 4]
    assert all(one.normed for stream in analysis.plan.streams for one in stream.reads)
    assert not analysis.plan.partial
    assert not analysis.plan.declined
    added = added_parameters(result, analysis, seed=1)
    (output, *_), gradients, of_added = run_with_gradients(result.gm, fresh_inputs(found), added)
    given = [x.clone().requires_grad_() for x in inputs]
    leaves = [x.detach().clone().requires_grad_() for x in added]
    expected = by_hand(model, NORMS[norm], *given, leaves, size)
    own = torch.autograd.grad(((expected - 0.3) ** 3).sum(), leaves)
    assert_same([output, *of_added], [expected, *own], 1e-9)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)


MIXED: dict[str, Joined] = {
    "statistics over all tokens": lambda self, k, u: u * torch.rsqrt(u.pow(2).mean((1, 2), keepdim=True) + 1e-12),
    "statistics over features and tokens": lambda self, k, u: F.layer_norm(u, u.shape[1:]),
    "a product before the norm": lambda self, k, u: self.norm[k](torch.softmax(self.linear[k % 3](u), 1) * u),
    "tokens mixed before the norm": lambda self, k, u: self.norm[k](u + u.mean(1, keepdim=True)),
    "no norm": lambda self, k, u: u,
}


@pytest.mark.parametrize("norm", MIXED)
def test_rows_that_are_mixed_before_they_are_normed_are_not(norm: str) -> None:
    plan = analysed(class_attention(MIXED[norm]), sample(2, 3, WIDTH), sample(2, 1, WIDTH, seed=2))[1].plan
    assert [decline.reason for decline in plan.declined][:1] == [Reason.UNNORMED_READ], plan
    assert [len(stream.writes) for stream in plan.streams] == []


def test_two_joins_do_not_meet() -> None:
    """Rows of one concatenation are not those of another one, though both have two degrees."""

    def model(self: Function, x: Tensor, token: Tensor) -> Tensor:
        x = x.sinh()
        for k in range(2):
            x = x + self.linear[k](self.norm[k](x))
        one, other = torch.cat([token, x], 1), torch.cat([x, token], 1)
        y = self.norm[2](one * other)
        return y + self.linear[2](self.norm[3](y))

    plan = analysed(model, sample(2, 3, WIDTH), sample(2, 1, WIDTH, seed=2))[1].plan
    (last,) = [one for one in plan.streams[0].reads if one.state == 2] if plan.streams else [None]
    assert last is None or not last.normed


def test_features_that_are_joined_are_no_rows() -> None:
    """A norm over both takes neither scale away."""

    def model(self: Function, x: Tensor, other: Tensor) -> Tensor:
        x = x.sinh()
        for k in range(2):
            x = x + self.linear[k](self.norm[k](x))
        joined = F.layer_norm(torch.cat([other, x], -1), (2 * WIDTH,))
        return self.norm[2](x + joined[..., :WIDTH])

    plan = analysed(model, sample(), sample(seed=2))[1].plan
    assert plan.streams == ()
    assert plan.declined[0].reason is Reason.UNNORMED_READ
