"""Which tensor is which: tables keyed by tensors, and tensors that are one in another object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from attnres_passes.torch_private.ranks.dtensors import held, is_spread, placed

V = TypeVar("V")

# Autograd functions that give what they are given, memory and gradient, in another object: plain aliases, and what
# FSDP2 sends the inputs of a layer through.
_PASS_ON = ("AliasBackward0", "ViewBackward0", "RegisterPostBackwardFunctionBackward", "UnsafeViewBackward0")
_SWEEP_EVERY = 256


class TensorTable(Generic[V]):
    """Values by tensor, each for as long as its tensor lives."""

    def __init__(self) -> None:
        self._values: Any = WeakTensorKeyDictionary()
        self._by_storage: dict[StorageWeakRef, list[Any]] = {}
        self._puts = 0

    def put(self, tensor: Tensor, value: V) -> None:
        self._values[tensor] = value
        self._by_storage.setdefault(_storage(tensor), []).append(TensorWeakRef(tensor))
        self._puts += 1
        if self._puts % _SWEEP_EVERY == 0:
            kept = [key for key in self._by_storage if not key.expired()]  # type: ignore[no-untyped-call]
            self._by_storage = {key: self._by_storage[key] for key in kept}

    def get(self, tensor: Tensor) -> V | None:
        value: V | None = self._values.get(tensor)
        return value

    def find(self, matches: Callable[[Tensor], bool], tensor: Tensor) -> tuple[Tensor, V] | None:
        """A tensor of the table in the memory of another one, and its value.

        Args:
            matches: whether it is the one that is looked for.
            tensor: the other one.
        """
        for reference in self._by_storage.get(_storage(tensor), ()):
            one = reference()
            if one is not None and one in self._values and matches(one):
                return one, self._values[one]
        return None

    def __len__(self) -> int:
        return len(self._values)


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Of a DTensor, that of what this rank holds: the DTensor itself has no memory."""
    tensor = held(tensor) if is_spread(tensor) else tensor
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def version_of(tensor: Tensor) -> int:
    """How often the memory of a tensor was changed in place; tensors of inference mode do not count."""
    if is_spread(tensor):
        return version_of(held(tensor)) + (0 if tensor.is_inference() else int(tensor._version))
    return -1 if tensor.is_inference() else int(tensor._version)


def is_alias_of(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one in all but the object: memory, place in it, shape and dtype."""
    if is_spread(one) and is_spread(other):
        return placed(one) == placed(other) and one.shape == other.shape and is_alias_of(held(one), held(other))
    if is_spread(one) or is_spread(other):
        return False
    return (
        one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
        and one.dtype == other.dtype
    )


def is_passed_on(tensor: Tensor) -> bool:
    """Whether an alias gets its gradient from the tensor that it is an alias of, unchanged."""
    return tensor.grad_fn is not None and tensor.grad_fn.name() in _PASS_ON


def changes_gradient(tensor: Tensor) -> bool:
    """Whether a hook on a tensor may change its gradient, or wants to see it.

    FSDP2 hangs hooks on what a layer gives, to gather the layer's parameters for its backward, and looks at no
    gradient.
    """
    hooks = tensor._backward_hooks or {}
    return any(not str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp") for hook in hooks.values())


class _Tied(torch.autograd.Function):
    """Gives a tensor; another one gets a gradient of zeros when the tensor gets its own."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, other: Tensor) -> Tensor:
        ctx.shape, ctx.dtype, ctx.device, ctx.is_spread = other.shape, other.dtype, other.device, is_spread(other)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if ctx.is_spread:
            return gradient, torch.zeros_like(gradient)
        zeros = torch.zeros((), dtype=ctx.dtype, device=ctx.device).expand(ctx.shape)
        return gradient, zeros


def tied(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor``, such that autograd comes by ``other`` on the way back, with a gradient of zeros.

    What hangs on ``other`` (FSDP gathers the parameters of the layer that gave it, and frees those of the one that
    takes it) happens where it would.
    """
    if not (torch.is_grad_enabled() and other.requires_grad and tensor.requires_grad):
        return tensor
    result: Tensor = _Tied.apply(tensor, other)  # type: ignore[no-untyped-call]
    return result
