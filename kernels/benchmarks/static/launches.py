"""The launches of a call, recorded and not run: no GPU is needed to know what would be launched on which tensors.

``JITFunction.run`` and ``Autotuner.run`` of Triton, which every launch goes through, take the launch down and return.
So what a package launches is seen as it is, from its public functions, and not read from its code.

*Bytes* of a launch are those of the distinct tensors that it is given, each once. That is what has to move at least,
and for kernels that go over a row twice in one program it is what moves if the second time finds it in a cache. An
operation of torch between launches moves its inputs and its output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnres_kernels.launch import tiling
from attnres_passes.torch_private.example_values import fake_mode_of

from .specialization import Specialization, specialize

CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Launch:
    """One kernel, or one operation of torch."""

    name: str
    nbytes: int
    choices: int
    """Configurations that the package times before it takes one; 1 without autotuning, 0 for an operation of torch."""
    code: tuple[str, ...] = ()
    """Digest of each specialization that it chooses among; of some of them if they were thinned out."""


@dataclass
class Recorded:
    """The launches of a call, in order."""

    launches: list[Launch] = field(default_factory=list)
    specializations: dict[str, Specialization] = field(default_factory=dict)
    """All of them so far, by digest."""
    keeps: Callable[[list[Any]], list[Any]] = list
    """Which configurations of an autotuner are specialized; a kernel without one has None alone."""

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


def _inside(kernel: Any) -> Any:
    while not hasattr(kernel, "params"):
        kernel = kernel.fn
    return kernel


def _through_heuristics(kernel: Any, args: Any, kwargs: Any, config: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The function of Triton inside a tuned one, and the arguments that it gets."""
    while not hasattr(kernel, "params"):
        named = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs, **config.all_kwargs()}
        kwargs = {**kwargs, **{name: value(named) for name, value in getattr(kernel, "values", {}).items()}}
        kernel = kernel.fn
    return kernel, args, kwargs


def _same(kernel: Any) -> Any:
    return kernel


@contextlib.contextmanager
def _forgetting(*functions: Any) -> Iterator[None]:
    """What these keep of earlier calls is of the CPU outside, and of a GPU inside."""
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


def _yes(_any: Any) -> bool:
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

    def take(kernel: Any, choices: int, given: tuple[Any, Any], made: list[Specialization]) -> None:
        tensors = {id(x): x.nbytes for x in tree_leaves(given) if isinstance(x, Tensor)}
        of_digest = {one.digest: one for one in made}
        recorded.specializations |= of_digest
        recorded.launches.append(Launch(kernel.__name__, sum(tensors.values()), choices, tuple(of_digest)))

    def run(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
        made = [specialize(self, args, kwargs, grid) for _ in recorded.keeps([None])]
        take(self, 1, (args, kwargs), made)

    def tuned_run(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))  # as its own run does for what prunes
        configs = recorded.keeps(self.prune_configs({**kwargs, "grid": grid}))
        made = [specialize(*_through_heuristics(self.fn, args, kwargs, config), grid, config) for config in configs]
        take(_inside(self.fn), len(self.configs), (args, kwargs), made)

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
        # Our operators launch nothing on fake tensors, so theirs are on the CPU, and cut as those on a GPU.
        stack.enter_context(mock.patch.object(tiling, "is_gpu", _yes))
        stack.enter_context(_forgetting(tiling.programs, tiling.shared_memory))
        triton.runtime.driver.set_active(_Driver())
        stack.enter_context(_Operations(recorded))
        yield recorded
