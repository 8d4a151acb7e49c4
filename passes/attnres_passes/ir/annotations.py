"""What a node means to the rewrite: ``node.meta["attnres"]``, kept through all levels and shown in their text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch.fx import Node

from attnres_passes.ir.read_id import ReadId

KEY = "attnres"
Kind = Literal["parameter", "key", "root", "write", "read", "carry", "schedule", "norm", "probe", "statistic"]


@dataclass(frozen=True)
class Annotation:
    """What a node of the rewrite is for.

    stream: its index in the plan; block and sublayer count from 1; sublayer: index of the write that the node belongs
    to, or of the read's state; read: of reads, their keys, parameters and norms; stage: pipeline chunk, once it is
    planned; group: of reads that share a pass over completed blocks, from 0 in each layout of the stream.
    """

    kind: Kind
    stream: int
    block: int | None = None
    sublayer: int | None = None
    read: ReadId | None = None
    stage: int | None = None
    group: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.kind} stream={self.stream}" if self.read is None else f"{self.kind} {self.read}"]
        for name in ("block", "sublayer", "group", "stage"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value}")
        return " ".join(parts)


@dataclass(frozen=True)
class Staged:
    """A node of the model itself in a pipeline. stage: the chunk that runs it; copies: others that run it too."""

    stage: int
    copies: tuple[int, ...] = ()

    def __str__(self) -> str:
        copies = f" copies={','.join(map(str, self.copies))}" if self.copies else ""
        return f"stage={self.stage}{copies}"


def annotation_of(node: Node) -> Annotation | None:
    """The annotation of a node; None for nodes that the rewrite did not make."""
    annotation = node.meta.get(KEY)
    assert annotation is None or isinstance(annotation, (Annotation, Staged))
    return annotation if isinstance(annotation, Annotation) else None


def read_of(node: Node) -> ReadId:
    """The read that a node of the rewrite belongs to; one without is a fault of a pass."""
    annotation = annotation_of(node)
    assert annotation is not None
    assert annotation.read is not None
    return annotation.read


def stages_of(node: Node) -> tuple[int, ...]:
    """The pipeline chunks that run a node, in their order; none before stages are planned."""
    mark = node.meta.get(KEY)
    if isinstance(mark, Staged):
        return (mark.stage, *mark.copies)
    return () if mark is None or mark.stage is None else (mark.stage,)


def set_stages(node: Node, stages: tuple[int, ...]) -> None:
    """Note which pipeline chunks run a node, beside its annotation if it has one.

    Args:
        node: of any graph.
        stages: numbers of chunks from 0, one at least, and one alone for what the rewrite added.
    """
    annotation = annotation_of(node)
    assert stages
    assert annotation is None or len(stages) == 1, "what the rewrite adds runs in one chunk"
    node.meta[KEY] = Staged(stages[0], stages[1:]) if annotation is None else replace(annotation, stage=stages[0])


def annotate(node: Node, annotation: Annotation) -> Node:
    """Say what a node is for.

    Args:
        node: made by a pass.
        annotation: takes the place of an earlier one.

    Returns:
        The node.
    """
    node.meta[KEY] = annotation
    return node
