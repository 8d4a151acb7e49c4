"""The model of a description: one walk over it, on plain streams or on streams of depth attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.generated.description import Description, Layer, Tower
from tests.generated.parts import CARRIES, Norm
from tests.generated.stream import DepthStream, MakeStream, PlainStream, Stream
from tests.generated.sublayers import Branch, Sublayer

VOCABULARY = 11


class Part(nn.Module):
    """The modules of one layer."""

    def __init__(self, layer: Layer, width: int, of_norm: float, memory_width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm(layer.norm, width, of_norm) for _ in range(4))
        self.sublayers = nn.ModuleList(Sublayer(kind, width, memory_width) for kind in layer.sublayers)
        self.branch = Branch(layer.branch, width)
        self.weight = nn.Parameter(torch.rand(()) + 0.5)


class TowerModel(nn.Module):
    """One stream. memory_width: of what its sublayers are given beside the stream, 0 if there is nothing."""

    def __init__(self, tower: Tower, of_norm: float, memory_width: int = 0) -> None:
        super().__init__()
        self.tower = tower
        width, kept = tower.width, tower.layers[:1] if tower.is_shared else tower.layers
        self.parts = nn.ModuleList(Part(layer, width, of_norm, memory_width) for layer in kept)
        self.last = Norm(tower.layers[-1].norm, width, of_norm)
        self.aside = Norm("nn.LayerNorm", width, of_norm)
        self.positions = nn.Parameter(torch.randn(width))
        self.vector = nn.Parameter(torch.rand(width) + 0.5)
        self.scalar = nn.Parameter(torch.rand(()) + 0.5)

    def layer(self, k: int, stream: Stream, root: Tensor, states: list[Tensor], memory: Tensor | None = None) -> None:
        """Layer ``k``, and the step behind it. states: of the model, at the end of which the state before is put."""
        part = self.parts[0 if self.tower.is_shared else k]
        layer = self.tower.layers[0 if self.tower.is_shared else k]
        drawn = self.tower.layers[k]
        if drawn.injected == "root":
            stream.write(root, "x + f")
        elif drawn.injected == "root with a weight":
            stream.write(part.weight * root, "x + f")
        elif drawn.injected == "positions":
            stream.write(self.positions, "x + f")
        if self.tower.returns_states:
            stream.give(states)
        self.sublayers(part, layer, stream, memory)
        if drawn.carry != "nothing":
            stream.carry(drawn.carry, lambda x: CARRIES[drawn.carry](self, x))

    def sublayers(self, part: Part, layer: Layer, stream: Stream, memory: Tensor | None) -> None:
        """The two sublayers of a layer, in its style."""
        norms, (one, other), spelling = part.norms, part.sublayers, layer.addition
        if layer.style == "one norm, one write":
            y = norms[0](stream.read())
            stream.write(part.branch(one(y, memory) + other(y)), spelling)
        elif layer.style == "one norm, two writes":
            y = norms[0](stream.read())
            first, second = one(y, memory), other(y)
            stream.write(part.branch(first), spelling)
            stream.write(part.branch(second), spelling)
        elif layer.style == "two norms":
            first, second = one(norms[0](stream.read()), memory), other(norms[1](stream.read()))
            stream.write(part.branch(first), spelling)
            stream.write(part.branch(second), spelling)
        else:
            for k, (sublayer, given) in enumerate(((one, memory), (other, None))):
                f = sublayer(norms[k](stream.read()), given)
                stream.write(part.branch(norms[k + 2](f) if layer.style == "sandwich" else f), spelling)

    def end(self, stream: Stream) -> Tensor:
        """What the last reader makes of the stream."""
        x = stream.read()
        if self.tower.last == "first position":
            x = x[:1]
        elif self.tower.last == "pooled":
            x = x.mean(0)
        return x if self.tower.last == "bare" else self.last(x)


class GeneratedModel(nn.Module):
    """Of a description without a near miss."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        torch.manual_seed(description.seed)
        self.description = description
        widths = [tower.width for tower in description.towers]
        beside = {"encoder-decoder": [0, widths[0]], "side by side": widths[::-1]}
        memory = beside.get(description.topology, [0, 0])
        self.towers = nn.ModuleList(
            TowerModel(tower, description.of_norm, width)
            for tower, width in zip(description.towers, memory, strict=False)
        )
        self.embedding = nn.Embedding(VOCABULARY, widths[0])
        self.positions = nn.Parameter(torch.randn(widths[0]))
        self.enter = nn.Linear(widths[0], widths[0])
        self.between = nn.Linear(widths[0], widths[-1])
        self.double()

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return self.walk(PlainStream, *inputs)

    def walk(self, make: MakeStream, *inputs: Tensor) -> list[Tensor]:
        """The model on streams of a kind: all that it returns."""
        states: list[Tensor] = []
        root = self.root(inputs[0])
        if self.description.topology == "side by side":
            return [*self.side_by_side(make, root, inputs[1]), *states]
        first, *rest = self.towers
        end = self.tower(first, make(root), root, states)
        outputs = [end]
        for tower in rest:
            if self.description.topology == "encoder-decoder":
                root, memory = self.between(inputs[1]), end.reshape(-1, end.shape[-1])
            else:
                root, memory = self.between(end), None
            outputs.append(self.tower(tower, make(root), root, states, memory))
        return [*outputs, *states]

    def tower(
        self, tower: TowerModel, stream: Stream, root: Tensor, states: list[Tensor], memory: Tensor | None = None
    ) -> Tensor:
        """All layers of one tower, and its end."""
        for k in range(len(tower.tower.layers)):
            tower.layer(k, stream, root, states, memory)
        end = tower.end(stream)
        stream.finish()
        return end

    def side_by_side(self, make: MakeStream, root: Tensor, other: Tensor) -> list[Tensor]:
        """Two streams, each layer of which is given what the other one holds, normed and pooled."""
        one, two = self.towers
        roots = [root, self.between(other)]
        streams = [make(root) for root in roots]
        states: list[list[Tensor]] = [[], []]
        for k in range(len(one.tower.layers)):
            for tower, stream, at, there, beside, given in (
                (one, streams[0], roots[0], states[0], two, streams[1]),
                (two, streams[1], roots[1], states[1], one, streams[0]),
            ):
                seen = beside.aside(given.read())
                tower.layer(k, stream, at, there, seen.reshape(-1, seen.shape[-1]))
        ends = [tower.end(stream) for tower, stream in zip((one, two), streams, strict=True)]
        for stream in streams:
            stream.finish()
        return [*ends, *states[0], *states[1]]

    def root(self, x: Tensor) -> Tensor:
        """Of the first stream."""
        kind = self.description.root
        if kind == "linear":
            return self.enter(x)
        if kind == "sinh":
            return torch.sinh(x)
        if kind == "input":
            return x
        if kind == "changed in place":
            x = torch.sinh(x)
            x[..., -1, :] = self.positions.detach()
            return x
        embedded = self.embedding(x)
        return embedded if kind == "embedding" else embedded + self.positions

    def unnormed_reads(self) -> int:
        """Reads that leave the model un-normed: bare ends, and states of two sources or more that are returned."""
        bare = sum(tower.last == "bare" for tower in self.description.towers)
        return bare + sum(len(tower.layers) - 1 for tower in self.description.towers if tower.returns_states)

    def inputs(self) -> tuple[Tensor, ...]:
        """Random ones, the same for each call."""
        generator = torch.Generator().manual_seed(self.description.seed + 1)
        lead, width = self.description.lead, self.description.towers[0].width
        shape = (*lead, width)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.description.root.startswith("embedding"):
            x = torch.randint(VOCABULARY, lead, generator=generator)
        needs_two = self.description.topology in ("encoder-decoder", "side by side")
        return (x, torch.randn(shape, generator=generator, dtype=torch.float64)) if needs_two else (x,)


class _Counting(PlainStream):
    """A plain stream that counts its writes."""

    def __init__(self, root: Tensor) -> None:
        super().__init__(root)
        self.writes = 0

    def write(self, branch: Tensor, spelling: str) -> None:
        super().write(branch, spelling)
        self.writes += 1


def writes_of(model: GeneratedModel) -> list[int]:
    """How many writes each stream of the model has."""
    streams: list[_Counting] = []

    def make(root: Tensor) -> Stream:
        streams.append(_Counting(root))
        return streams[-1]

    # Dropout draws for this, too, and is to draw the same afterwards.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model.walk(make, *(x.clone() for x in model.inputs()))
    return [stream.writes for stream in streams]


def by_hand(model: GeneratedModel, parameters: Sequence[Sequence[Tensor]], *inputs: Tensor) -> list[Tensor]:
    """What the model computes with attention residuals. parameters: of the reads of each stream, in read order."""
    description = model.description
    name, number = description.blocks
    sizes = iter([min(number, writes) if name == "block_size" else -(-writes // number) for writes in writes_of(model)])
    given = iter(parameters)
    return model.walk(
        lambda root: DepthStream(root, next(sizes), next(given), description.eps, description.scale), *inputs
    )
