"""Labels: what the source of a model's layers says about their residual stream, read by a person and kept as data.

``labels.json`` has an entry for every class of layer: a kind, how many additions one call of it makes to a stream that
can be rewritten, and the file and lines that were read. What the sweep found has no part in it. A model's label follows
from the layers that a plain run of it calls; where a configuration decides, ``models`` has the number for the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from attnres_compile.sweep.record import ModelRecord, Outcome

KINDS = {
    "prenorm": "norms before each sublayer",
    "sandwich": "norms before and behind each sublayer",
    "postnorm": "norms on the sum",
    "unnormed": "a sublayer reads the sum without a norm",
    "convolutional": "sums along channels, channels first",
    "hyper-connections": "several streams that are mixed",
    "gated": "a gate on the stream",
    "reversible": "two streams that add to each other",
    "depth attention": "layers attend to earlier ones by themselves",
    "none": "no sum from layer to layer",
}


@dataclass(frozen=True)
class LayerLabel:
    """Of one class. writes: additions of a call that belong to a stream that can be rewritten; at: what was read."""

    kind: str
    writes: int
    at: str

    def __post_init__(self) -> None:
        _require_known(self.kind)


@dataclass(frozen=True)
class OwnLabel:
    """Of one model where the classes of its layers do not decide. partial: whether pieces of a stream are all there is.

    why: with the file and lines that decide. kind: only of a model that calls no module in a list of layers.
    """

    writes: int
    why: str
    partial: bool = False
    kind: str = ""

    def __post_init__(self) -> None:
        if self.kind:
            _require_known(self.kind)


@dataclass(frozen=True)
class ModelLabel:
    """Of one model, as it was swept. kinds: of the layers that it calls, without those that add nothing.

    partial: whether a stream is cut, so that pieces are rewritten.
    """

    kinds: tuple[str, ...]
    writes: int
    at: tuple[str, ...]
    why: str = ""
    partial: bool = False

    @property
    def kind(self) -> str:
        """In words."""
        return " + ".join(self.kinds) or "none"


@dataclass(frozen=True)
class Labels:
    """All labels. read_from: versions of the libraries whose source was read."""

    layers: Mapping[str, LayerLabel]
    models: Mapping[str, OwnLabel]
    read_from: Mapping[str, str]

    def of(self, record: ModelRecord) -> ModelLabel | None:
        """The label of a model; None where a layer that it calls has none, or it calls none and has no own."""
        own = self.models.get(record.name)
        if not record.layers and own is not None and own.kind:
            return ModelLabel((own.kind,), own.writes, (own.why,), own.why, own.partial)
        if not record.layers or any(name not in self.layers for name in record.layers):
            return None
        found = {name: self.layers[name] for name in record.layers}
        counted = sum(calls * found[name].writes for name, calls in record.layers.items())
        own = own or OwnLabel(counted, "")
        adding = [label for label in found.values() if label.kind != "none"]
        kinds = tuple(kind for kind in KINDS if any(label.kind == kind for label in adding))
        at = tuple(label.at for label in adding or found.values())
        return ModelLabel(kinds, own.writes, at, own.why, own.partial)


def _require_known(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of layer: one of {', '.join(KINDS)}")


def read_labels() -> Labels:
    """The labels of the package."""
    data = json.loads(resources.files(__package__).joinpath("labels.json").read_text(encoding="utf-8"))
    layers = {name: LayerLabel(*entry) for name, entry in data["layers"].items()}
    models = {name: OwnLabel(**entry) for name, entry in data["models"].items()}
    return Labels(layers, models, data["read_from"])


def agrees(record: ModelRecord, label: ModelLabel) -> bool:
    """Whether what became of a model is what its label says: as many writes, in whole streams or in pieces, or none.

    Args:
        record: of a model that was decided.
        label: of it.
    """
    if label.writes == 0:
        return record.outcome is Outcome.DECLINED
    wanted = Outcome.PARTIAL if label.partial else Outcome.REWRITTEN
    return record.outcome is wanted and record.writes == label.writes
