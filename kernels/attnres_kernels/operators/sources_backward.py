"""The gradients of completed blocks and keys from all reads of a group at once, on generated kernels."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from attnres_kernels.generation.specs import KernelSpec
from attnres_kernels.launch import launch_sources_backward
from attnres_kernels.launch.split_sources_backward import split_into_launches
from attnres_kernels.operators.definition import OperatorDefinition, Work, multiplied
from attnres_kernels.operators.phase_1 import columns


class SourcesBackward(NamedTuple):
    """Arguments of the backward of several reads into completed blocks.

    read_grads, scalars: per read what its backward gave, or None; carried: per source a gradient from later reads,
    or None; sources, logits: blocks `[*, d]` and their logits; keys: `[S, d]` of the reads `first ..` of `total`.
    """

    read_grads: Sequence[Tensor | None]
    scalars: Sequence[Tensor | None]
    carried: Sequence[Tensor | None]
    sources: Sequence[Tensor]
    logits: Sequence[Tensor]
    keys: Tensor
    first: int
    total: int
    eps: float


def _run(call: SourcesBackward) -> list[Tensor]:
    """Gradients of the sources `[*, d]`, then that of the keys `[S, d]` in fp32."""
    of_reads = columns(call.logits, call.first, call.keys.shape[0], call.total)
    grads, key_grads = launch_sources_backward.sources_backward(
        call.sources, of_reads, call.keys, call.read_grads, call.scalars, call.carried, call.eps
    )
    return [*(grad.reshape(call.sources[0].shape) for grad in grads), key_grads]


def _there(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(place for place, x in enumerate(tensors) if x is not None)


def _kernels(call: SourcesBackward) -> list[KernelSpec]:
    width = call.sources[0].shape[-1]
    launches = split_into_launches(len(call.sources), _there(call.read_grads), _there(call.carried), width)
    return [launch.spec for launch in launches]


def _flops(call: SourcesBackward) -> int:
    """Of every source a square sum and its own term, and per read a product, two terms and the key's."""
    return multiplied(len(call.sources) * (2 + 4 * len(_there(call.read_grads))), call.sources[0])


SOURCES_BACKWARD = OperatorDefinition(
    "attnres::generated_sources_backward",
    SourcesBackward,
    list[Tensor],
    _run,
    lambda call: [x.new_empty(x.shape) for x in (*call.sources, call.keys)],
    kernels=_kernels,
    flops=_flops,
    work=lambda call: Work(len(call.sources)),
)
