"""Logits of a completed block for all its later reads: on torch calls, on a generated kernel, and with the last add."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition import scheduled
from attnres_kernels.generation.specs import LogitsSpec
from attnres_kernels.launch import launch_phase_1
from attnres_kernels.operators.definition import OperatorDefinition, Work, any_layout, multiplied
from attnres_kernels.operators.tiles import flatten, inverse_rms


class Logits(NamedTuple):
    """The arguments of `scheduled.source_logits`."""

    source: Tensor
    keys: Tensor
    first: int
    eps: float


def _run_on_torch(call: Logits) -> Tensor:
    source, keys = call.source, call.keys
    with torch.autocast(source.device.type, enabled=False):
        value = flatten(source).to(keys.dtype)
        logits = value @ keys[call.first :].t()
        logits.mul_(inverse_rms(value, call.eps).unsqueeze(-1))
    return logits.reshape(*source.shape[:-1], logits.shape[-1])


def _run(call: Logits) -> Tensor:
    logits = launch_phase_1.source_logits(call.source, call.keys[call.first :], call.eps)
    return logits.reshape(*call.source.shape[:-1], logits.shape[-1])


def _fake(call: Logits) -> Tensor:
    return call.keys.new_empty((*call.source.shape[:-1], call.keys.shape[0] - call.first))


def _flops(call: Logits) -> int:
    """Square sum, and the dot product with every later read's key."""
    return multiplied(call.keys.shape[0] - call.first + 1, call.source)


def _one_block(_call: object) -> Work:
    return Work(1)


SOURCE_LOGITS = OperatorDefinition(
    "attnres::source_logits",
    Logits,
    Tensor,
    _run_on_torch,
    _fake,
    flops=_flops,
    work=_one_block,
    make=any_layout,
)

GENERATED_LOGITS = OperatorDefinition(
    "attnres::generated_logits",
    Logits,
    Tensor,
    _run,
    _fake,
    kernels=lambda call: [LogitsSpec(splits_keys=False)],
    flops=_flops,
    work=_one_block,
    computes=(scheduled.source_logits,),
)


class Block(NamedTuple):
    """The arguments of `scheduled.complete_block`."""

    partial: Tensor
    branch: Tensor
    keys: Tensor
    first: int
    eps: float


def _run_block(call: Block) -> tuple[Tensor, Tensor]:
    keys, shape = call.keys[call.first :], call.partial.shape
    block, logits = launch_phase_1.complete_block(call.partial, call.branch, keys, call.eps)
    return block.reshape(shape), logits.reshape(*shape[:-1], logits.shape[-1])


def _of_block(call: Block) -> Logits:
    return Logits(call.partial, call.keys, call.first, call.eps)


GENERATED_BLOCK = OperatorDefinition(
    "attnres::generated_block",
    Block,
    tuple[Tensor, Tensor],
    _run_block,
    lambda call: (call.partial.new_empty(call.partial.shape), _fake(_of_block(call))),
    kernels=lambda call: [LogitsSpec(splits_keys=False, adds=True)],
    flops=lambda call: _flops(_of_block(call)),
    work=lambda call: Work(1, takes_in=["add"]),
    computes=(scheduled.complete_block,),
)
