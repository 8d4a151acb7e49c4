"""What can be drawn: the description of one model, of its inputs and of what is asked of the rewrite."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from tests.generated.near_misses import NEAR_MISSES
from tests.generated.parts import ADDITIONS, CARRIES, NORMS
from tests.generated.sublayers import BRANCHES, SUBLAYERS, SUMS

STYLES = ("sequential", "one norm, one write", "one norm, two writes", "two norms", "sandwich")
INJECTED = ("nothing", "nothing", "nothing", "root", "root with a weight", "positions")
TOPOLOGIES = ("tower", "tower", "towers", "encoder-decoder", "side by side")
ROOTS = ("linear", "embedding", "embedding and positions", "input", "sinh", "changed in place")
LASTS = ("norm", "first position", "pooled", "bare")
LEADS = ((3,), (1, 3), (2, 3), (2, 5), (3, 1), (2, 1, 3), (2, 2))
"""Sizes of the axes before the features."""

_MOVED = frozenset({"flatten", "swap"})


@dataclass(frozen=True)
class Layer:
    """style: how its sublayers read and write; branch: what scales what they give; injected: what is added before it;
    carry: what the stream goes through behind it, unless it is the last.
    """

    style: str
    norm: str
    sublayers: tuple[str, str]
    addition: str
    branch: str
    injected: str
    carry: str


@dataclass(frozen=True)
class Tower:
    """One residual stream. last: its reader at the end; is_shared: the same sublayers in all layers."""

    width: int
    layers: tuple[Layer, ...]
    last: str
    returns_states: bool
    is_shared: bool


@dataclass(frozen=True)
class Description:
    """A model that is rewritten, or one that is left alone if ``near_miss`` is named.

    of_norm: eps of all norms; eps: of the key norms.
    """

    topology: str
    towers: tuple[Tower, ...]
    root: str
    lead: tuple[int, ...]
    blocks: tuple[str, int]
    scale: str
    eps: float
    of_norm: float
    near_miss: str | None
    seed: int

    @property
    def reason(self) -> str | None:
        """For which it has to be declined."""
        return None if self.near_miss is None else NEAR_MISSES[self.near_miss].reason

    def options(self) -> dict[str, Any]:
        """Of the rewrite."""
        name, number = self.blocks
        return {name: number, "scale": self.scale, "eps": self.eps}


def _layers() -> st.SearchStrategy[Layer]:
    return st.builds(
        Layer,
        style=st.sampled_from(STYLES),
        norm=st.sampled_from(tuple(NORMS)),
        sublayers=st.tuples(*[st.sampled_from(tuple(SUBLAYERS))] * 2),
        addition=st.sampled_from(tuple(ADDITIONS)),
        branch=st.sampled_from(tuple(BRANCHES)),
        injected=st.sampled_from(INJECTED),
        carry=st.sampled_from(tuple(CARRIES)),
    )


def _towers() -> st.SearchStrategy[Tower]:
    return st.builds(
        Tower,
        width=st.sampled_from((3, 5, 6, 8)),
        layers=st.lists(_layers(), min_size=2, max_size=4).map(tuple),
        last=st.sampled_from(LASTS),
        returns_states=st.booleans(),
        is_shared=st.booleans(),
    )


def descriptions() -> st.SearchStrategy[Description]:
    """Models of one or two streams, one in eight of which must be left alone."""
    return st.builds(
        Description,
        topology=st.sampled_from(TOPOLOGIES),
        towers=st.tuples(_towers(), _towers()),
        root=st.sampled_from(ROOTS),
        lead=st.sampled_from(LEADS),
        blocks=st.tuples(st.sampled_from(("num_blocks", "block_size")), st.integers(1, 5)),
        scale=st.sampled_from(("mean", "sum")),
        eps=st.sampled_from((1e-6, 1e-5, 1e-3)),
        of_norm=st.sampled_from((1e-12, 1e-6, 1e-5)),
        near_miss=st.one_of(*[st.none()] * 7, st.sampled_from(tuple(NEAR_MISSES))),
        seed=st.integers(0, 2**16),
    ).map(possible)


def possible(drawn: Description) -> Description:
    """The description without what no model can be, or what cannot be compared exactly.

    Dropout draws its mask in the order of memory, which is another one for a stream that was transposed. A step in
    place changes what has left the model. A position cannot be taken where the layout changed on the way.
    """
    if drawn.near_miss is not None:
        layers = tuple(map(_without_sums, drawn.towers[0].layers))
        return replace(drawn, topology="near miss", towers=(replace(drawn.towers[0], layers=layers),))
    towers = drawn.towers[: 1 if drawn.topology == "tower" else 2]
    if drawn.topology == "side by side":
        depth = min(len(tower.layers) for tower in towers)
        towers = tuple(replace(tower, layers=tuple(map(_without_view, tower.layers[:depth]))) for tower in towers)
    if drawn.topology in ("towers", "encoder-decoder"):
        towers = (replace(towers[0], last="norm"), towers[1])
    if any(tower.returns_states for tower in towers) and drawn.root == "input":
        drawn = replace(drawn, root="sinh")  # an input that is returned is no output of a graph
    if drawn.topology == "side by side" and drawn.root == "changed in place":
        drawn = replace(drawn, root="sinh")  # what is changed is numbered when it is read, so as the second stream
    is_swapped = any(layer.carry == "swap" for tower in towers for layer in tower.layers[:-1])
    ranks = [len(drawn.lead)] * 2
    if drawn.topology == "towers" and any(layer.carry == "flatten" for layer in towers[0].layers[:-1]):
        ranks[1] = 1
    possible_towers = (_possible(tower, rank, is_swapped) for tower, rank in zip(towers, ranks, strict=False))
    return replace(drawn, towers=tuple(possible_towers))


def _without_sums(layer: Layer) -> Layer:
    """Sums inside of a sublayer are declined for reasons of their own, beside that of the model or in its place."""
    return replace(layer, sublayers=tuple("mlp" if kind in SUMS else kind for kind in layer.sublayers))


def _without_view(layer: Layer) -> Layer:
    return replace(layer, addition="x + f") if layer.addition == "flat" else layer


def _possible(tower: Tower, rank: int, is_swapped: bool) -> Tower:
    layers, moved = [], False
    for k, layer in enumerate(tower.layers):
        if k == len(tower.layers) - 1 or (layer.carry == "swap" and (rank < 2 or moved)):
            layer = replace(layer, carry="nothing")
        if is_swapped and layer.branch == "dropout":
            layer = replace(layer, branch="number")
        if is_swapped and layer.carry == "dropout":
            layer = replace(layer, carry="clone")
        if tower.returns_states and layer.carry == "in place":
            layer = replace(layer, carry="negated")
        if k == 0 or (moved and layer.injected.startswith("root")):
            layer = replace(layer, injected="nothing")
        moved |= layer.carry in _MOVED
        layers.append(layer)
    return replace(tower, layers=tuple(layers))
