"""A batch and its micro-batches: how it is split, and what the inputs of a step must look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from attnres_compile.pipelines.errors import PipelineBatchError


@dataclass(frozen=True)
class Batch:
    """What a step is given. count: micro-batches; size: rows; shapes: of each input of the model, with its dtype."""

    count: int
    size: int
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]

    def first_microbatch(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs of the first micro-batch.

        Args:
            args, kwargs: inputs of the whole batch.
            device: where they are to be.
        """
        rows = self.size // self.count
        first_args, first_kwargs = tree_map_only(
            Tensor, lambda tensor: tensor[:rows].to(device), (tuple(args), dict(kwargs))
        )
        return first_args, first_kwargs

    def error_of(
        self, given: Mapping[str, Tensor], wanted: set[str], target: Tensor | None
    ) -> PipelineBatchError | None:
        """What is wrong with a step; None if nothing is.

        Args:
            given: the inputs, by name.
            wanted: names of those that this rank uses.
            target: for the loss, where this rank computes one.
        """
        for name in sorted(wanted):
            shape, dtype = self.shapes[name]
            if name not in given:
                return PipelineBatchError(f"{name} is missing; give every rank all inputs of the model.")
            found = given[name]
            if tuple(found.shape) != shape or found.dtype != dtype:
                return PipelineBatchError(
                    f"{name} is {_described(tuple(found.shape), found.dtype)}, and the stages were made for "
                    f"{_described(shape, dtype)}, {self.count} micro-batches of {self.size // self.count}; drop or pad "
                    "the last batch of an epoch, or make another pipeline."
                )
        if target is not None and (target.dim() == 0 or target.shape[0] != self.size):
            return PipelineBatchError(
                f"target has shape {tuple(target.shape)}, and a batch has {self.size} rows; give one entry per row."
            )
        return None


def batch_of(leaves: Mapping[str, Tensor], microbatches: int) -> Batch:
    """What a batch looks like.

    Args:
        leaves: its input tensors by name, each with the rows of the batch first.
        microbatches: that it is split into.

    Raises:
        PipelineBatchError: it cannot be split evenly.
    """
    if microbatches < 1:
        raise PipelineBatchError(f"microbatches={microbatches} is not at least 1; give one or more.")
    sizes = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in leaves.items()}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in leaves.items()) or "there are none"
        raise PipelineBatchError(
            f"every input tensor must have the rows of the batch first, since it is split there ({listed}); expand "
            "what is the same for all rows."
        )
    (size,) = set(sizes.values())
    if size == 0 or size % microbatches:
        raise PipelineBatchError(
            f"a batch of {size} cannot be split into {microbatches} equal micro-batches; give a multiple of "
            f"{microbatches}."
        )
    return Batch(microbatches, size, {name: (tuple(t.shape), t.dtype) for name, t in leaves.items()})


def _described(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
