"""How much memory a model's weights need, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import nn

from attnres_compile.models.errors import TooLargeError

_GB = 1e9


def check_fits(build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Refuse weights that do not fit into this machine, or onto the device.

    Models are built in main memory, in torch's default dtype, and moved.

    Args:
        build: the model.
        device: that it is moved to.
        dtype: in which it is moved.

    Raises:
        TooLargeError: says how much is needed and there.
    """
    weights = _weights_without_data(build)
    for place, needed, there in (
        ("this machine", sum(x.numel() * x.element_size() for x in weights), _main_memory()),
        (str(device), sum(x.numel() for x in weights) * dtype.itemsize, _memory_of(device)),
    ):
        if needed > there:
            raise TooLargeError(
                f"the weights need {needed / _GB:.1f} GB, and {place} has {there / _GB:.1f} GB: take a smaller model, "
                "or a verb that needs no weights (attnres inspect, attnres report without --measure)"
            )


def _weights_without_data(build: Callable[[], nn.Module]) -> list[torch.Tensor]:
    """Parameters and buffers of the model as it is on the meta device."""
    with torch.device("meta"):
        try:
            model = build()
        except (NotImplementedError, RuntimeError):
            # Its construction looks at numbers. Its size stays unknown, and to build it may fail for want of memory.
            return []
    return [*model.parameters(), *model.buffers()]


def _main_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _main_memory()
