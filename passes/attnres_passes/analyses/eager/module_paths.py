"""The modules that Python is calling, by their paths in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


class ModulePaths:
    """The modules that are being called, by their paths in the model.

    stack: as Dynamo notes it at nodes, from the model inwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack: dict[str, tuple[str, type[nn.Module]]] = {}
        self.calls: list[tuple[nn.Module, str]] = []
        self.paths_in: dict[int, dict[int, str]] = {}
        self.names = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}

    def name_of(self, tensor: Tensor) -> str:
        """The name of a parameter or buffer; '' for any other tensor."""
        return self.names.get(id(tensor), "").replace(".", "_")

    @contextlib.contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """Be in a call of a module. One that is no part of the model leaves no trace of itself."""
        path = self._path(module)
        if path is None:
            yield
            return
        before = self.stack
        # Nodes keep the stack that they were made under, so that it is not changed.
        self.stack = {**before, f"{len(before)}:{path}": (path, type(module))}
        self.calls.append((module, path))
        try:
            yield
        finally:
            self.stack = before
            self.calls.pop()

    def _path(self, module: nn.Module) -> str | None:
        """By the innermost module that is being called and holds it, as it is reached from there."""
        for caller, path in reversed(self.calls):
            inner = self._paths_in(caller).get(id(module))
            if inner is not None:
                return ".".join(part for part in (path, inner) if part)
        return self._paths_in(self.model).get(id(module))

    def _paths_in(self, module: nn.Module) -> dict[int, str]:
        if id(module) not in self.paths_in:
            self.paths_in[id(module)] = {id(one): name for name, one in module.named_modules()}
        return self.paths_in[id(module)]
