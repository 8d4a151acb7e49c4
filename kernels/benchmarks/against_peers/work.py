"""The work that every arm is given: its shapes, its inputs and its definition.

op      one read: ``n`` completed blocks and an open partial sum ``[T, d]`` -> ``[T, d]``
block   what a model runs for one block of ``S`` reads over ``n`` completed blocks: before each read the branch of the
        sublayer before it is added to the open partial sum, behind each read stands an RMSNorm; the first read has no
        partial sum, that of the second is the branch itself. Outputs: ``S`` normed values and the completed block.

Sublayers are left out, so the branches are inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnres_compile.report.comparison import MeasureError
from attnres_kernels.definition import naive, scheduled

OP, BLOCK = "op", "block"
LEVELS = (OP, BLOCK)
FORWARD, TRAINING = "forward", "training"
DIRECTIONS = (FORWARD, TRAINING)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

EPS = 1e-6
"""Of the key norm and of the RMSNorm behind a read: one, since a peer that fuses both takes one."""


@dataclass(frozen=True)
class Shape:
    """One cell of the grid, but for its direction."""

    level: str
    tokens: int
    width: int
    sources: int
    """Completed blocks."""
    reads: int
    """Of the block, 1 at op level."""
    dtype: str

    def __post_init__(self) -> None:
        least = {"tokens": 1, "width": 1, "sources": 2, "reads": 2 if self.level == BLOCK else 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise MeasureError(f"{name} is {getattr(self, name)}: pass at least {value}")
        for name, given, known in (("level", self.level, LEVELS), ("dtype", self.dtype, DTYPES)):
            if given not in known:
                raise MeasureError(f"{name} {given!r} is not known: pass one of {', '.join(known)}")

    @property
    def later(self) -> int:
        """Reads after this block, of which a form with logits first makes the completed block's logits: a block's."""
        return self.reads if self.level == BLOCK else 0

    @property
    def total(self) -> int:
        return self.reads + self.later

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one ``[T, d]``, the unit in which moved bytes are counted."""
        return self.tokens * self.width * self.torch_dtype.itemsize

    def __str__(self) -> str:
        reads = f", S {self.reads}" if self.level == BLOCK else ""
        return f"{self.level}: T {self.tokens}, d {self.width}, n {self.sources}{reads}, {self.dtype}"


class Inputs(NamedTuple):
    """What an arm is given."""

    sources: list[Tensor]
    """``n`` completed blocks ``[T, d]``."""
    branches: list[Tensor]
    """``S`` of them ``[T, d]``; at op level the open partial sum."""
    queries: list[Tensor]
    """``[d]`` of this block's reads and, behind them, of the later ones."""
    key_weights: list[Tensor]
    """``[d]``, one for each query."""
    norm_weights: list[Tensor]
    """``[d]``, ``S`` of them; none at op level."""

    def leaves(self, reads: int) -> dict[str, Tensor]:
        """What gets a gradient, by name; parameters of later reads get none from this block."""
        named: dict[str, Tensor] = {}
        groups = zip(("source", "branch", "query", "key weight", "norm weight"), self, strict=True)
        for name, tensors in groups:
            kept = tensors[:reads] if name in ("query", "key weight") else tensors
            named |= {f"{name} {index}": tensor for index, tensor in enumerate(kept)}
        return named


def make_inputs(shape: Shape, device: torch.device, training: bool, seed: int = 0) -> Inputs:
    """Random inputs; the queries are such that the logits have a standard deviation of about one.

    Args:
        shape: of the work.
        device: that they are on.
        training: whether they want gradients.
        seed: of the generator.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, spread: float = 1.0, mean: float = 0.0) -> Tensor:
        values = torch.empty(size, device=device, dtype=shape.torch_dtype).normal_(mean, spread, generator=generator)
        return values.requires_grad_(training)

    rows = (shape.tokens, shape.width)
    return Inputs(
        [normal(*rows) for _ in range(shape.sources)],
        [normal(*rows) for _ in range(shape.reads)],
        [normal(shape.width, spread=shape.width**-0.5) for _ in range(shape.total)],
        [normal(shape.width, spread=0.1, mean=1.0) for _ in range(shape.total)],
        [normal(shape.width, spread=0.1, mean=1.0) for _ in range(shape.reads if shape.level == BLOCK else 0)],
    )


Read = Callable[[int, list[Tensor]], Tensor]
"""A read by its number and its sources, the open partial sum last; at block level with the norm behind it."""


def block_by_reads(inputs: Inputs, read: Read, add: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The block level for a form that knows single reads only.

    Args:
        inputs: of the work.
        read: one read with the norm behind it.
        add: the partial sum plus a branch; its third argument is what the sublayer of that branch was given.
    """
    normed: list[Tensor] = []
    partial: Tensor | None = None
    for number in range(len(inputs.branches)):
        if number > 0:
            branch = inputs.branches[number - 1]
            partial = branch if partial is None else add(partial, branch, normed[-1])
        normed.append(read(number, inputs.sources if partial is None else [*inputs.sources, partial]))
    assert partial is not None
    return [*normed, add(partial, inputs.branches[-1], normed[-1])]


def _plain_add(partial: Tensor, branch: Tensor, _before: Tensor) -> Tensor:
    return partial + branch


def definition(
    inputs: Inputs, add: Callable[[Tensor, Tensor, Tensor], Tensor] = _plain_add, eps: float = EPS
) -> list[Tensor]:
    """The outputs by the definition of the depth attention, in plain torch.

    Args:
        inputs: of the work.
        add: as for ``block_by_reads``.
        eps: of the key norm and of the norm behind a read.
    """
    if not inputs.norm_weights:
        sources = [*inputs.sources, *inputs.branches]
        return [naive.naive_read(sources, inputs.queries[0], inputs.key_weights[0], eps, "mean")]

    def read(number: int, sources: list[Tensor]) -> Tensor:
        value = naive.naive_read(sources, inputs.queries[number], inputs.key_weights[number], eps, "mean")
        return scheduled.normalise(value, "rms", eps, inputs.norm_weights[number], None)

    return block_by_reads(inputs, read, add)


def output_names(shape: Shape) -> Sequence[str]:
    """Of the outputs that every arm has; a form with logits first has the completed block's logits behind them."""
    return ["value"] if shape.level == OP else [*(f"normed {s}" for s in range(shape.reads)), "block"]
