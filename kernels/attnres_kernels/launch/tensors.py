"""What all launches do with tensors: check, flatten, allocate, and share tokens out among programs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnres_kernels.errors import UnsupportedSourcesError
from attnres_kernels.launch import tiling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise UnsupportedSourcesError(
                f"the generated kernels compute in fp32 from {', '.join(map(str, DTYPES))}, not from {tensor.dtype}: "
                "set ATTNRES_KERNELS=torch."
            )
        if tensor.shape[-1] > tiling.WIDEST:
            raise UnsupportedSourcesError(
                f"the stream is {tensor.shape[-1]} wide and the generated kernels hold rows of at most "
                f"{tiling.WIDEST}: set ATTNRES_KERNELS=torch."
            )


def rows_of(tensor: Tensor) -> Tensor:
    """``[*, d]`` as ``[rows, d]`` with contiguous rows: a view wherever one exists."""
    flat = tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])
    return flat if flat.shape[1] <= 1 or flat.stride(1) == 1 else flat.contiguous()


def new(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def cdiv(count: int, size: int) -> int:
    return -(-count // size)


def shares(like: Tensor, columns: int, at_once: int = 2) -> tuple[int, int]:
    """How many programs sum over the tokens of ``like`` ``[rows, d]``, and the tokens of each.

    columns: tiles that a row is cut into; at_once: programs for each multiprocessor.

    The first number depends on the device and on how many tiles a row is cut into, never on the tokens, so that a size
    that is unknown when a graph is compiled stays so.
    """
    programs = max(1, tiling.programs(like.device, at_once) // columns)
    return programs, cdiv(like.shape[0], programs)
