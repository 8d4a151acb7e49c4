"""Random residual modules, and the same modules over an independent simulation of Block AttnRes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "flatten": lambda x: x.reshape(-1, x.shape[-1]),
    "reshape_and_back": lambda x: x.reshape(-1, x.shape[-1]).unsqueeze(0).view(x.shape),
    "swap": lambda x: x.transpose(0, 1),
    "cast": lambda x: x.float().double(),
    "clone": lambda x: x.clone(),
    "dropout": lambda x: F.dropout(x, 0.25),
    "number": lambda x: 0.7 * x,
    "divided": lambda x: x / 2**0.5,
    "vector": lambda x: x * torch.linspace(-1.0, 1.5, x.shape[-1], dtype=x.dtype),
    "mask": lambda x: x * (torch.arange(x.shape[0]) != 1).view(-1, *[1] * (x.dim() - 1)),
    "filled": lambda x: x.masked_fill((torch.arange(x.shape[0]) == 1).view(-1, *[1] * (x.dim() - 1)), 0.0),
    "scaled_in_place": lambda x: x.mul_(-0.8),
}
STYLES = ("sequential", "in_place", "commuted", "parallel_one_norm", "parallel_two_norms", "branch_dropout")
NORMS = ("layer_norm", "rms_norm", "hand_written")


@dataclass(frozen=True)
class Spec:
    """One random module. layers: (style, norm, what happens to the stream after the layer)."""

    width: int
    layers: tuple[tuple[str, str, str], ...]
    last_norm: bool
    returns_states: bool
    block_size: int

    @property
    def tolerance(self) -> float:
        """fp64, unless the stream goes through fp32 on its way."""
        return 3e-5 if any(between == "cast" for *_, between in self.layers) else 1e-10


def _possible(layers: list[tuple[str, str, str]]) -> tuple[tuple[str, str, str], ...]:
    """Without what cannot be: dropout of a transposed stream draws its mask in another order of memory, and two
    axes have none to swap but the last one.
    """
    flat = False
    for k, (style, norm, after) in enumerate(layers):
        flat |= after == "flatten"
        layers[k] = (style, norm, "nothing" if flat and after == "swap" else after)
    if all(between != "swap" for *_, between in layers):
        return tuple(layers)
    other = {"branch_dropout": "sequential", "dropout": "clone"}
    return tuple((other.get(style, style), norm, other.get(after, after)) for style, norm, after in layers)


def specs(between: tuple[str, ...] = tuple(BETWEEN)) -> st.SearchStrategy[Spec]:
    """Modules of two to four layers."""
    layer = st.tuples(st.sampled_from(STYLES), st.sampled_from(NORMS), st.sampled_from(between))
    return st.builds(
        Spec,
        width=st.sampled_from((3, 6, 8)),
        layers=st.lists(layer, min_size=2, max_size=4).map(_possible),
        last_norm=st.booleans(),
        returns_states=st.booleans(),
        block_size=st.integers(1, 5),
    )


class Layer(nn.Module):
    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.scales = nn.ParameterList(torch.rand(width) + 0.5 for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def normed(self, k: int, x: Tensor) -> Tensor:
        if self.norm == "layer_norm":
            return F.layer_norm(x, (x.shape[-1],), self.scales[k], None, 1e-12)
        if self.norm == "rms_norm":
            return F.rms_norm(x, (x.shape[-1],), self.scales[k], 1e-12)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12) * self.scales[k]

    def branch(self, k: int, x: Tensor) -> Tensor:
        return torch.tanh(self.linears[k](x)) * 2.0


class RandomModel(nn.Module):
    """The residual module of a spec, written as its author would."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.spec = spec
        self.layers = nn.ModuleList(Layer(spec.width, norm) for _, norm, _ in spec.layers)
        self.double()

    def example(self) -> Tensor:
        return torch.randn(2, 3, self.spec.width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.sinh(x)
        states = []
        for layer, (style, _, between) in zip(self.layers, self.spec.layers, strict=True):
            if self.spec.returns_states:
                states.append(x.clone() if style == "in_place" else x)
            x = BETWEEN[between](self._layer(layer, style, x))
        return [self.layers[0].normed(0, x) if self.spec.last_norm else x, *states]

    def _layer(self, layer: Layer, style: str, x: Tensor) -> Tensor:
        if style == "parallel_one_norm":
            y = layer.normed(0, x)
            return x + (layer.branch(0, y) + layer.branch(1, y))
        if style == "parallel_two_norms":
            return x + layer.branch(0, layer.normed(0, x)) + layer.branch(1, layer.normed(1, x))
        for k in range(2):
            branch = layer.branch(k, layer.normed(k, x))
            if style == "commuted":
                x = branch + x
            elif style == "in_place":
                branch += x
                x = branch
            else:
                x = x + (F.dropout(branch, 0.25) if style == "branch_dropout" else branch)
        return x


class SimulatedStream:
    """Equations 1 to 6 of the paper, word by word: sources, blocks and the softmax over them."""

    def __init__(self, root: Tensor, block_size: int, parameters: list[Tensor], eps: float, scale: str) -> None:
        self.blocks, self.partial, self.count = [root], None, 0
        self.block_size, self.eps, self.scale = block_size, eps, scale
        self.parameters: Iterator[Tensor] = iter(parameters)

    def read(self) -> Tensor:
        sources = [*self.blocks, *([] if self.partial is None else [self.partial])]
        if len(sources) == 1:
            return sources[0]
        query, weight = next(self.parameters), next(self.parameters)
        values = torch.stack(sources)
        dtype = values.dtype if values.dtype == torch.float64 else torch.float32
        keys = values / (values.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * weight.to(dtype)
        attention = (keys @ query.to(dtype)).softmax(0)
        total = (attention.unsqueeze(-1) * values).sum(0)
        return total * len(sources) if self.scale == "sum" else total

    def write(self, value: Tensor) -> None:
        self.partial = value if self.partial is None else self.partial + value
        self.count += 1
        if self.count % self.block_size == 0:
            self.blocks.append(self.partial)
            self.partial = None

    def carry(self, function: Callable[[Tensor], Tensor]) -> None:
        self.blocks = [function(block) for block in self.blocks]
        self.partial = None if self.partial is None else function(self.partial)


def simulate(model: RandomModel, x: Tensor, added: list[Tensor], **options: Any) -> list[Tensor]:
    """What the model computes with attention residuals; `added` are query and key weight of every read."""
    spec = model.spec
    stream = SimulatedStream(torch.sinh(x), spec.block_size, added, options["eps"], options["scale"])
    states = []
    for layer, (style, _, between) in zip(model.layers, spec.layers, strict=True):
        # The layer's own reads of a state come first, then the one that returns it.
        _simulate_layer(layer, style, stream, states if spec.returns_states else None)
        if layer is model.layers[-1] and between != "scaled_in_place":
            break  # no write follows, so what comes after the last layer reads the stream
        if between == "dropout":
            mask = F.dropout(torch.ones_like(stream.blocks[0]), 0.25)
            stream.carry(lambda source, mask=mask: source * mask)
        else:
            # In place, a step changes what is given, and sources are read again.
            stream.carry(lambda source, carry=BETWEEN[between]: carry(source.clone()))
    last, between = stream.read(), spec.layers[-1][2]
    # What makes a new value of the last state is its reader; in place, it is the state that changes.
    last = last if between == "scaled_in_place" else BETWEEN[between](last)
    assert next(stream.parameters, None) is None, "every parameter is read once"
    return [model.layers[0].normed(0, last) if spec.last_norm else last, *states]


def _simulate_layer(layer: Layer, style: str, stream: SimulatedStream, states: list[Tensor] | None) -> None:
    returned_first = style == "in_place"
    if states is not None and returned_first:
        states.append(stream.read())
    if style == "parallel_one_norm":
        y = layer.normed(0, stream.read())
        _return_state(stream, states, returned_first)
        stream.write(layer.branch(0, y) + layer.branch(1, y))
        return
    if style == "parallel_two_norms":
        first, second = layer.normed(0, stream.read()), layer.normed(1, stream.read())
        _return_state(stream, states, returned_first)
        stream.write(layer.branch(0, first))
        stream.write(layer.branch(1, second))
        return
    for k in range(2):
        y = layer.normed(k, stream.read())
        if k == 0:
            _return_state(stream, states, returned_first)
        branch = layer.branch(k, y)
        stream.write(F.dropout(branch, 0.25) if style == "branch_dropout" else branch)


def _return_state(stream: SimulatedStream, states: list[Tensor] | None, done: bool) -> None:
    if states is not None and not done:
        states.append(stream.read())
