"""Models that look like a PreNorm stream and are none, and the reason for which each has to be left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.generated.parts import Norm
from tests.generated.sublayers import Sublayer

if TYPE_CHECKING:
    from tests.generated.description import Description


class Missing(nn.Module):
    """The modules of a near miss: norms and sublayers as the description's first tower has them."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        torch.manual_seed(description.seed)
        (tower,) = description.towers
        self.description = description
        self.depth = len(tower.layers)
        kinds = [layer.sublayers[0] for layer in tower.layers]
        self.norms = nn.ModuleList(Norm(layer.norm, tower.width, description.of_norm) for layer in tower.layers)
        self.sublayers = nn.ModuleList(Sublayer(kind, tower.width) for kind in kinds)
        self.weights = nn.ParameterList(torch.randn(tower.width, tower.width) for _ in kinds)
        self.square = nn.Linear(tower.width, tower.width, bias=False)
        self.last = Norm(tower.layers[-1].norm, tower.width, description.of_norm)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return NEAR_MISSES[self.description.near_miss or ""].forward(self, x)

    def f(self, k: int, x: Tensor) -> Tensor:
        """Sublayer ``k`` of a normed input."""
        return self.sublayers[k](self.norms[k](x))

    def stack(self, x: Tensor, depth: int | None = None) -> Tensor:
        """A PreNorm stack; deeper than its layers it begins with the first again."""
        x = torch.sinh(x)
        for k in range(self.depth if depth is None else depth):
            x = x + self.f(k % self.depth, x)
        return x

    def inputs(self) -> tuple[Tensor]:
        """A random one."""
        lead, width = self.description.lead, self.description.towers[0].width
        generator = torch.Generator().manual_seed(self.description.seed + 1)
        near_miss = NEAR_MISSES[self.description.near_miss or ""]
        if near_miss.of_integers:
            return (torch.randint(width, (*lead, width), generator=generator),)
        if near_miss.of_channels:
            return (torch.randn(2, width, 4, generator=generator, dtype=torch.float64),)
        if near_miss.of_tokens:
            return (torch.randn(2, 3, width, generator=generator, dtype=torch.float64),)
        return (torch.randn(*lead, width, generator=generator, dtype=torch.float64),)


def _steps(step: Callable[[Missing, int, Tensor], Tensor]) -> Callable[[Missing, Tensor], Tensor]:
    """A stack with one step in place of ``x + f(norm(x))``."""

    def forward(m: Missing, x: Tensor) -> Tensor:
        x = torch.sinh(x)
        for k in range(m.depth):
            x = step(m, k, x)
        return m.last(x)

    return forward


def _ends(end: Callable[[Missing, Tensor, Tensor], Tensor]) -> Callable[[Missing, Tensor], Tensor]:
    """A PreNorm stack whose last sublayer is added in another way. end: of the stream and of that sublayer's output."""

    def forward(m: Missing, x: Tensor) -> Tensor:
        x = m.stack(x, max(m.depth, 3))
        return m.last(end(m, x, m.square(F.layer_norm(x, x.shape[-1:]))))

    return forward


def _channels_first(m: Missing, x: Tensor) -> Tensor:
    """``[batch, channels, tokens]``, with a norm over the channels and a product from the left."""
    for weight in m.weights:
        y = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)
        x = x + torch.tanh(weight @ y)
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def _channels_first_by_einsum(m: Missing, x: Tensor) -> Tensor:
    x = x * 1.0
    for weight in m.weights:
        y = (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-6)
        x = x + torch.tanh(torch.einsum("oc,bct->bot", weight, y))
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def _highway(m: Missing, k: int, x: Tensor) -> Tensor:
    y = m.norms[k](x)
    gate = torch.sigmoid(m.square(y))
    return gate * x + (1 - gate) * m.sublayers[k](y)


def _lanes(m: Missing, x: Tensor) -> Tensor:
    """Two lanes, mixed by weights that are made of them before each addition."""
    x = torch.sinh(x).unsqueeze(2).expand(-1, -1, 2, -1)
    for k in range(m.depth):
        weights = torch.softmax(m.square(m.norms[k](x))[..., :2], -1)
        read = (weights[..., :1] * x).sum(2)
        x = torch.matmul(weights, x) + m.f(k, read).unsqueeze(2)
    return m.last(x.sum(2))


def _reversible(m: Missing, x: Tensor) -> Tensor:
    x = y = torch.sinh(x)
    for k in range(m.depth):
        x = x + m.f(k, y)
        y = y + m.f(k, x)
    return m.last(x) * m.last(y)


def _over_time(m: Missing, x: Tensor) -> Tensor:
    """One set of weights, and one token after the other."""
    state = torch.sinh(x[:, 0])
    for t in range(x.shape[1]):
        state = state + torch.tanh(m.square(m.norms[0](state) + x[:, t]))
    return m.last(state)


def _polynomial(m: Missing, x: Tensor) -> Tensor:
    y = m.square(x)
    for power in range(2, 2 + m.depth):
        y = y + 0.1 * y**power
    return m.last(y)


def _side_by_side(m: Missing, x: Tensor) -> Tensor:
    """A sum inside one sublayer: all is made of one value that is not normed."""
    x = m.square(x)
    y = x
    for k in range(m.depth):
        y = y + m.sublayers[k](x)
    return m.last(y)


def _hooked(m: Missing, k: int, x: Tensor) -> Tensor:
    x = x + m.f(k, x)
    x.register_hook(lambda gradient: gradient / 2)
    return x


def _over_depth(m: Missing, x: Tensor) -> Tensor:
    sources = [torch.sinh(x)]
    for k in range(m.depth + 1):
        stacked = torch.stack(sources)
        weights = torch.softmax(m.last(stacked) @ m.weights[0][0], 0)
        read = (weights.unsqueeze(-1) * stacked).sum(0)
        sources.append(m.f(k % m.depth, read))
    return m.last(sources[-1])


def _forked(m: Missing, x: Tensor) -> Tensor:
    x = m.stack(x)
    other = x + m.f(0, x)
    for k in range(m.depth):
        x = x + m.f(k, x)
    return m.last(x) * m.last(other)


def _integers(m: Missing, ids: Tensor) -> Tensor:
    table = torch.arange(ids.shape[-1])
    for k in range(m.depth):
        ids = ids + table[ids % ids.shape[-1]] * (k + 1)
    return ids


def _unnormed_once(m: Missing, k: int, x: Tensor) -> Tensor:
    return x + (m.sublayers[k](x) if k == m.depth - 1 else m.f(k, x))


def _unnormed_bridge(m: Missing, x: Tensor) -> Tensor:
    """The state of one stack, projected without a norm, is the root of the next one."""
    y = F.gelu(m.square(m.stack(x)))
    return m.last(y + m.f(0, y))


@dataclass(frozen=True)
class NearMiss:
    """reason: for which it is declined; beside: another reason, of what else is added; of_..: what it is given."""

    reason: str
    forward: Callable[[Missing, Tensor], Tensor]
    beside: str | None = None
    of_channels: bool = False
    of_integers: bool = False
    of_tokens: bool = False


NEAR_MISSES: dict[str, NearMiss] = {
    "norm behind the addition": NearMiss("post_norm", _steps(lambda m, k, x: m.norms[k](x + m.sublayers[k](x)))),
    "norm behind the addition alone": NearMiss("post_norm", _steps(lambda m, k, x: m.norms[k](m.sublayers[k](x) + x))),
    "no norm": NearMiss("unnormed_read", _steps(lambda m, k, x: x + m.sublayers[k](x))),
    "no norm in the last layer": NearMiss("unnormed_read", _steps(_unnormed_once)),
    "activation without a norm": NearMiss("unnormed_read", _steps(lambda m, k, x: x + m.sublayers[k](F.gelu(x)))),
    "unnormed bridge": NearMiss("unnormed_read", _unnormed_bridge, beside="too_few_writes"),
    "last one subtracted": NearMiss("unnormed_read", _ends(lambda m, x, f: x - f)),
    "last one weighed": NearMiss("unnormed_read", _ends(lambda m, x, f: torch.add(x, f, alpha=0.5))),
    "last one stacked": NearMiss("unnormed_read", _ends(lambda m, x, f: torch.stack([x, f]).sum(0))),
    "last one by lerp": NearMiss("unnormed_read", _ends(lambda m, x, f: torch.lerp(x, f, 0.3))),
    "channels first": NearMiss("channels_first", _channels_first, of_channels=True),
    "channels first, einsum": NearMiss("channels_first", _channels_first_by_einsum, of_channels=True),
    "highway": NearMiss("gated", _steps(_highway)),
    "lanes": NearMiss("lanes", _lanes, of_tokens=True),
    "reversible": NearMiss("reversible", _reversible),
    "recurrence over time": NearMiss("recurrence", _over_time, of_tokens=True),
    "clamped": NearMiss("clamped", _steps(lambda m, k, x: (x + m.f(k, x)).clamp(-9.0, 9.0))),
    "activation on the stream": NearMiss("interrupted", _steps(lambda m, k, x: torch.relu(x + m.f(k, x)))),
    "all by lerp": NearMiss("other_sum", _steps(lambda m, k, x: torch.lerp(x, m.f(k, x), 0.3))),
    "all subtracted": NearMiss("other_sum", _steps(lambda m, k, x: x - m.f(k, x))),
    "polynomial": NearMiss("no_sublayer", _polynomial),
    "sum of branches": NearMiss("inside_sublayer", _side_by_side),
    "one sublayer": NearMiss("too_few_writes", lambda m, x: m.last(m.stack(x, 1))),
    "nothing is added": NearMiss("no_residual", _steps(lambda m, k, x: m.f(k, x))),
    "attends over depth": NearMiss("depth_attention", _over_depth),
    "gradient hook": NearMiss("gradient_hook", _steps(_hooked)),
    "forked": NearMiss("forked", _forked),
    "integers": NearMiss("non_floating", _integers, of_integers=True),
}
