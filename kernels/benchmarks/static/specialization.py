"""What of a kernel a launch compiles: the very specialization that Triton would make, and where it would run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

TARGET = "sm_90"
_PLACE, _APART = 0x7F00_0000_0000, 1 << 33
"""Where tensors are taken to be: addresses are multiples of 16, as those of new tensors are."""


@dataclass(frozen=True)
class Specialization:
    """One kernel with all that is compiled in, and the arguments of its launch."""

    kernel: Any
    """A ``triton.jit`` function."""
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    """As the launch gives them: ``num_warps``, ``num_stages``, .."""
    arguments: tuple[int | float | None, ...] = field(repr=False)
    """Of the compiled kernel, in order: numbers, and an address for each tensor."""
    grid: tuple[int, int, int]
    chosen: dict[str, Any]
    """What an autotuner, or the launch, chose: options and constants that are sizes of a tile."""

    @property
    def digest(self) -> str:
        """What tells specializations and their launches apart."""
        told = (self.kernel.cache_key, self.signature, self.constants, self.attributes, self.options)
        return hashlib.sha256(repr((told, self.arguments, self.grid)).encode()).hexdigest()[:16]


def specialize(
    kernel: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], grid: Any, config: Any = None
) -> Specialization:
    """What ``kernel[grid](*args, **kwargs)`` compiles, found by Triton's own functions for it.

    Args:
        kernel: a ``triton.jit`` function.
        args, kwargs: of the launch, options such as ``num_warps`` among them.
        grid: of it, a function of the arguments by name or the numbers.
        config: a ``triton.Config`` of an autotuner around it.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    words = {**kwargs, **(config.all_kwargs() if config is not None else {})}
    words.pop("warmup", None)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialized, others = bind(*args, **words)
    _, signature, constants, attributes = kernel._pack_args(backend, words, bound, specialized, others)
    size = grid(bound) if callable(grid) else grid
    shape = tuple(size) if isinstance(size, tuple | list) else (size,)
    names = [param.name for param in kernel.params if param.is_constexpr and isinstance(bound[param.name], int)]
    chosen = {
        **(dict(config.kwargs) if config is not None else {name: bound[name] for name in names}),
        **_plain(others),
    }
    return Specialization(
        kernel,
        signature,
        constants,
        attributes,
        _plain(others),
        tuple(_addressed(_leaves(list(signature.values()), list(bound.values())))),
        (*map(int, shape), 1, 1)[:3],  # type: ignore[arg-type]
        chosen,
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if isinstance(value, int | str | bool | float)}


def _leaves(types: Any, values: Any) -> Iterator[Any]:
    """The arguments that a compiled kernel has, in order."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple | list):
            yield from _leaves(kind, value)
        elif kind != "constexpr":
            yield value


def _addressed(values: Iterator[Any]) -> Iterator[int | float | None]:
    for number, value in enumerate(values):
        yield _PLACE + number * _APART if isinstance(value, Tensor) else value
