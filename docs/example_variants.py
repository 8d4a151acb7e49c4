"""Small models for docs/how_it_works.md: ways to carry a stream, and one model per reason to decline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from example_model import MLP, TinyGPT
from torch import Tensor, nn

WIDTH = 16


class HandwrittenNorm(nn.Module):
    """RMSNorm in four operations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Variant(nn.Module):
    """A stream of a few MLPs, each behind its norm. ``step`` says how one of them is added."""

    def __init__(self, layers: int = 2, norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(WIDTH)) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(layers))
        self.mlps = nn.ModuleList(MLP() for _ in range(layers))
        self.last = norm()

    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return x + mlp(norm(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0  # the stream's root: not an input, which an in-place addition would change for the caller
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = self.step(x, norm, mlp)
        return self.last(x)


class InPlace(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        x += mlp(norm(x))
        return x


class Reshaped(Variant):
    """The second addition runs on a flattened view of the stream, the others on the stream as it is."""

    def __init__(self) -> None:
        super().__init__(layers=3)

    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        if norm is not self.norms[1]:
            return x + mlp(norm(x))
        flat = x.view(-1, WIDTH)
        return (flat + mlp(norm(flat))).view(x.shape)


class Cast(Variant):
    """The stream is handed on in bfloat16."""

    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return (x.float() + mlp(norm(x.float()))).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        x = x.bfloat16()
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = self.step(x, norm, mlp)
        return self.last(x.float())


class Dropped(Variant):
    """Dropout on the stream itself."""

    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return nn.functional.dropout(x + mlp(norm(x)), 0.1)


class Scaled(Variant):
    """A learned factor per feature on the stream itself."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.full((WIDTH,), 0.9))

    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return self.keep * x + mlp(norm(x))


# One model per reason to decline.


class PostNorm(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return norm(x + mlp(x))


class Unnormed(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return x + mlp(x)


class ChannelsFirst(nn.Module):
    """Features on the second axis, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(4, WIDTH) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = x + convolution(norm(x))
        return x.mean((2, 3))


class Hooked(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        x = x + mlp(norm(x))
        x.register_hook(lambda gradient: gradient / 2)
        return x


class Clamped(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return (x + mlp(norm(x))).clamp(-65000.0, 65000.0)


class Interrupted(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return torch.relu(x + mlp(norm(x)))


class Gated(Variant):
    """A highway: what is added is weighed against the sum."""

    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        gate = torch.sigmoid(mlp(norm(x)))
        return gate * x + (1 - gate) * mlp(norm(x))


class Lerped(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return torch.lerp(x, mlp(norm(x)), 0.1)


class HyperConnected(Variant):
    """Two lanes, mixed by weights made of them before each addition."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2).expand(-1, -1, 2, -1)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            weights = mlp(norm(x))[..., :2].softmax(-1)
            read = (weights[..., :1] * x).sum(2)
            x = torch.matmul(weights, x) + mlp(norm(read)).unsqueeze(2)
        return self.last(x.sum(2))


class Reversible(Variant):
    def forward(self, x: Tensor) -> Tensor:
        x = y = x * 1.0
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(y))
            y = y + mlp(norm(x))
        return self.last(x + y)


class AttendsOverDepth(Variant):
    """Attention residuals, written by hand."""

    def __init__(self) -> None:
        super().__init__(layers=3)
        self.query = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        sources = [x * 1.0]
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            stacked = torch.stack(sources)
            weights = torch.softmax(self.last(stacked) @ self.query, 0)
            sources.append(mlp(norm((weights.unsqueeze(-1) * stacked).sum(0))))
        return self.last(sources[-1])


class Polynomial(Variant):
    """An activation made of powers, and nothing else that is added."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlps[0](x)
        y = y + 0.1 * y * y
        return self.last(y)


class SumOfBranches(Variant):
    """Two branches of one value, summed."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](x)
        return self.last(x + self.mlps[0](x) + self.mlps[1](x))


class Recurrent(Variant):
    """One weight, and one token after the other."""

    def forward(self, x: Tensor) -> Tensor:
        state = x[:, 0] * 1.0
        for t in range(x.shape[1]):
            state = state + self.mlps[0](self.norms[0](state) + x[:, t])
        return self.last(state)


class NoResidual(Variant):
    def step(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return mlp(norm(x))


class NonFloating(nn.Module):
    """Integers that are moved by a looked-up step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.arange(8))

    def forward(self, ids: Tensor) -> Tensor:
        for _ in range(2):
            ids = ids + self.steps[ids % 8]
        return ids


class Forked(Variant):
    """Two towers that start from one root."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        tower = self.step(self.step(x, self.norms[0], self.mlps[0]), self.norms[1], self.mlps[1])
        other = x + self.mlps[1](self.norms[1](x))
        return self.last(tower) * self.last(other)


class Conditional(Variant):
    """Each step is skipped or not as the data say, in an operator that holds a graph for either case."""

    def forward(self, x: Tensor) -> Tensor:
        for norm, mlp in zip(self.norms, self.mlps, strict=True):

            def run(state: Tensor, norm: nn.Module = norm, mlp: nn.Module = mlp) -> Tensor:
                return self.step(state, norm, mlp)

            x = torch.cond(x.sum() > 0, run, torch.clone, (x,))
        return self.last(x)


def states() -> Tensor:
    return torch.zeros(1, 4, WIDTH).normal_(generator=torch.Generator().manual_seed(0))


DECLINED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "post_norm": (PostNorm, states, {}),
    "unnormed_read": (Unnormed, states, {}),
    "channels_first": (ChannelsFirst, lambda: torch.ones(1, WIDTH, 4, 4), {}),
    "too_few_writes": (lambda: Variant(layers=1), states, {}),
    "no_residual": (NoResidual, states, {}),
    "no_sublayer": (Polynomial, states, {}),
    "inside_sublayer": (SumOfBranches, states, {}),
    "recurrence": (Recurrent, states, {}),
    "clamped": (Clamped, states, {}),
    "interrupted": (Interrupted, states, {}),
    "gated": (Gated, states, {}),
    "other_sum": (Lerped, states, {}),
    "lanes": (HyperConnected, states, {}),
    "reversible": (Reversible, states, {}),
    "depth_attention": (AttendsOverDepth, states, {}),
    "gradient_hook": (Hooked, states, {}),
    "non_floating": (NonFloating, lambda: torch.arange(4), {}),
    "forked": (Forked, states, {}),
    "opaque": (Conditional, states, {}),
    "not_selected": (TinyGPT, lambda: torch.zeros(1, 8, dtype=torch.long), {"streams": ["decoder"]}),
}
"""Reason -> model, input and options that are declined for it."""
