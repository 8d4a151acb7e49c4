"""The operations of a model that Python runs, for the analysis of one that Dynamo takes in as several graphs.

Which graphs Dynamo makes is of no account here: the model runs once as it is, on the example inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attnres_compile.capture.capture import as_itself, buffers_restored, check_not_empty, does_not_run
from attnres_compile.model.parameters import unwrapped
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.eager_recorder import trace_run

_NO_HOLDERS = (nn.Module, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, str, bytes, int, float)
"""What is not looked into for tensors."""


def trace_eagerly(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> AtenTrace:
    """Run ``model(*args, **kwargs)`` once, uncompiled, and note its ATen operations.

    Its buffers and the random state are put back; what else its forward leaves behind, such as an entry in a cache
    that it is given, stays.

    Args:
        model: that is prepared or not; it runs plain.
        args, kwargs: example inputs.

    Raises:
        EmptyBatchError: an example tensor has no elements.
        CaptureError: the model does not run on them.
    """
    named = kwargs or {}
    check_not_empty(args, named)
    model = unwrapped(model)
    given = [*model.parameters(), *model.buffers(), *_tensors_in(_attributes(model)), *_tensors_in((args, named))]

    def left_behind(result: Any) -> Iterator[Tensor]:
        return _tensors_in((result, args, named, _attributes(model)))

    with as_itself(model), buffers_restored(model), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        try:
            return trace_run(model, lambda: model(*args, **named), given, left_behind)
        except Exception as error:
            raise does_not_run(model, error) from error


def _attributes(model: nn.Module) -> list[Any]:
    """What the modules of a model hold besides parameters, buffers and modules."""
    own = {"_parameters", "_modules", "_buffers"}
    return [value for module in model.modules() for name, value in vars(module).items() if name not in own]


def _tensors_in(value: Any) -> Iterator[Tensor]:
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
    if isinstance(value, Mapping):
        contents = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        contents = list(value)
    slots: Iterable[str] = (name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()))
    held = [getattr(value, name) for name in slots if hasattr(value, name)]
    return [*contents, *held, *getattr(value, "__dict__", {}).values()]
