"""The launches of a call, recorded and not run: no GPU is needed to know what would be launched on which tensors.

``JITFunction.run`` and ``Autotuner.run`` of Triton, which every launch goes through, take the launch down and return.
So what a package launches is seen as it is, from its public functions, and not read from its code.

*Bytes* of a launch are those of the distinct tensors that it is given, each once. That is what has to move at least,
and for kernels that go over a row twice in one program it is what moves if the second time finds it in a cache. An
operation of torch between launches moves its inputs and its output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnres_passes.torch_private.example_values import fake_mode_of

CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Launch:
    """One kernel, or one operation of torch."""

    name: str
    nbytes: int
    choices: int
    """Configurations that the package times before it takes one; 1 without autotuning, 0 for an operation of torch."""


@dataclass
class Recorded:
    """The launches of a call, in order."""

    launches: list[Launch] = field(default_factory=list)

    def taken(self) -> list[Launch]:
        """Those since the last time."""
        found, self.launches = self.launches, []
        return found


class _Properties:
    """Of a GPU as packages ask for it when they are imported."""

    name, major, minor, multi_processor_count, warp_size = "sm_90", *CAPABILITY, 132, 32
    L2_cache_size, total_memory, shared_memory_per_multiprocessor = 50 << 20, 80 << 30, 228 << 10


class _Driver:
    """Stands for a driver, of which Triton asks for the target alone where nothing is run."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down operations of torch that move bytes."""

    def __init__(self, recorded: Recorded) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorded = recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = len(self._recorded.launches)
        result = func(*args, **(kwargs or {}))
        is_view = func.is_view or any(one.alias_info is not None for one in func._schema.returns)
        makes_nothing = str(func.overloadpacket) in _MOVE_NOTHING or func.namespace not in ("aten",)
        if not is_view and not makes_nothing and len(self._recorded.launches) == before:
            read = () if str(func.overloadpacket) in _READ_NOTHING else (args, kwargs)
            moved = sum(x.nbytes for x in tree_leaves((read, result)) if isinstance(x, Tensor))
            self._recorded.launches.append(Launch(f"torch.{func.overloadpacket.__name__}", moved, 0))
        return result


def _same(kernel: Any) -> Any:
    return kernel


def _yes(_tensor: Any) -> bool:
    return True


_MOVE_NOTHING = {
    "aten.empty",
    "aten.empty_like",
    "aten.new_empty",
    "aten.empty_strided",
    "aten.detach",
    "aten._local_scalar_dense",
}


_READ_NOTHING = {"aten.new_zeros", "aten.zeros_like", "aten.ones_like"}


@contextlib.contextmanager
def recording() -> Iterator[Recorded]:
    """Launches inside are taken down and not run; what they would write stays as it was made."""
    import triton
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    with fake_mode_of([]):
        fake = type(torch.empty(0))
    recorded = Recorded()

    def take(kernel: Any, choices: int, given: Any) -> None:
        tensors = {id(x): x.nbytes for x in tree_leaves(given) if isinstance(x, Tensor)}
        recorded.launches.append(Launch(kernel.__name__, sum(tensors.values()), choices))

    def run(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
        take(self, 1, (args, kwargs))

    def tuned_run(self: Any, *args: Any, **kwargs: Any) -> None:
        kernel = self.fn
        while not hasattr(kernel, "__name__"):
            kernel = kernel.fn  # heuristics
        take(kernel, len(self.configs), (args, kwargs))

    cuda = {
        "get_device_name": _Properties.name,
        "get_device_capability": CAPABILITY,
        "get_device_properties": _Properties,
        "current_device": 0,
        "device_count": 1,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        stack.enter_context(mock.patch.object(Autotuner, "run", tuned_run))
        stack.enter_context(mock.patch.object(torch.library, "wrap_triton", _same))
        stack.enter_context(mock.patch.object(fake, "is_cuda", property(_yes), create=True))
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
        triton.runtime.driver.set_active(_Driver())
        stack.enter_context(_Operations(recorded))
        yield recorded
