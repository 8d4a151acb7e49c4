"""The tensors that Python objects hold: inputs, results, and what a run leaves at its modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_NO_HOLDERS = (nn.Module, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, str, bytes, int, float)
"""What is not looked into for tensors."""


def attributes_of(model: nn.Module) -> list[Any]:
    """What the modules of a model hold besides parameters, buffers and modules."""
    own = {"_parameters", "_modules", "_buffers"}
    return [value for module in model.modules() for name, value in vars(module).items() if name not in own]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in containers, and in objects that hold some as attributes, such as caches and outputs."""
    pending: list[Any] = [value]
    # Kept, so that an identity stands for one object.
    seen: dict[int, Any] = {}
    while pending:
        for leaf in tree_leaves(pending.pop()):
            if id(leaf) in seen:
                continue
            seen[id(leaf)] = leaf
            if isinstance(leaf, Tensor):
                yield leaf
            elif not isinstance(leaf, _NO_HOLDERS):
                pending.append(_held(leaf))


def _held(value: Any) -> list[Any]:
    """What an object holds as a container, and as its attributes."""
    contents: list[Any] = []
    if isinstance(value, dict):
        # By what is there already: a dictionary of another class may make its values when it is asked.
        contents = list(dict.values(value))
    elif isinstance(value, (list, tuple, set, frozenset)):
        contents = list(value)
    slots: Iterable[str] = (name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()))
    held = [getattr(value, name) for name in slots if hasattr(value, name)]
    return [*contents, *held, *getattr(value, "__dict__", {}).values()]
