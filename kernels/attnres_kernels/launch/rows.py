"""What all launches do with rows of tensors: check, flatten, allocate, and share them out among programs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnres_kernels.errors import UnsupportedSourcesError
from attnres_kernels.launch import tiling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(*tensors: Tensor) -> None:
    """Raise UnsupportedSourcesError for a dtype or a width that the kernels cannot take."""
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
    """A tensor to be written, on the device of ``like``.

    Args:
        like: any tensor.
        shape, dtype: of the new one.
    """
    return torch.empty(shape, dtype=dtype, device=like.device)


def sums(like: Tensor, programs: int, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Sums over tokens to be written, a row ``[d]`` in fp32 of each program; zeros where there are no tokens.

    Args:
        like: ``[rows, d]``, over whose tokens is summed.
        programs: how many share them out.
        wanted: for each sum whether it is made; None stands for one that is not.
    """
    made = [new(like, (programs, like.shape[1]), torch.float32) if one else None for one in wanted]
    return made if like.shape[0] > 0 else [None if x is None else torch.zeros_like(x) for x in made]


def cdiv(count: int, size: int) -> int:
    """How many pieces of a size make up a count.

    Args:
        count: of what is cut.
        size: of a piece.
    """
    return -(-count // size)


def shares(like: Tensor, columns: int, at_once: int = 2) -> tuple[int, int]:
    """How many programs sum over the tokens of a tensor, and the tokens of each.

    The first number depends on the device and on how many tiles a row is cut into, never on the tokens, so that a size
    that is unknown when a graph is compiled stays so.

    Args:
        like: ``[rows, d]``.
        columns: tiles that a row is cut into.
        at_once: programs for each multiprocessor.
    """
    programs = max(1, tiling.programs(like.device, at_once) // columns)
    return programs, cdiv(like.shape[0], programs)
