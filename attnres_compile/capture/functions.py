"""The Python functions that a call of a model may run, found by the names that they use."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from attnres_passes.torch_private.version import TORCH_FOLDER

_LIBRARY = sysconfig.get_path("stdlib")
_HOLDERS = (MethodType, staticmethod, classmethod, property, functools.partial)
_UNWRAPPED = ("__wrapped__", "__func__", "func", "fget")
"""Where decorators, methods, partials and properties keep what they are about."""


def functions_of(model: nn.Module, inputs: Iterable[Any] = ()) -> list[FunctionType]:
    """Functions that ``model(..)`` may run, outside of torch and of Python's own library.

    Starts at the forwards and hooks of all modules, and follows the names that a function uses: globals, and methods
    of the classes found so far. It may name some that do not run; one that is reached by no name (kept in an object
    that is no module, say) is missed.

    Args:
        model: of any kind.
        inputs: arguments of the call, whose methods may run.
    """
    search = _Search()
    for module in model.modules():
        search.add_class(type(module))
        search.add_value(vars(module))
    for value in inputs:
        search.add_class(type(value))
    return search.run()


class _Search:
    """One search.

    found: functions in the order they are found; names: attribute names used so far; methods: of the classes found so
    far, by name; seen: identities of what was looked at, which ``kept`` keeps from being used again.
    """

    def __init__(self) -> None:
        self.found: list[FunctionType] = []
        self.names = {"forward", "__call__"}
        self.methods: dict[str, list[Any]] = {}
        self.seen: set[int] = set()
        self.kept: list[Any] = []

    def run(self) -> list[FunctionType]:
        followed = 0
        while followed < len(self.found):
            self._follow(self.found[followed])
            followed += 1
        return self.found

    def add_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if _is_foreign(base.__module__) or not self._is_new(base):
                continue
            for name, value in list(vars(base).items()):
                self.methods.setdefault(name, []).append(value)
                if name in self.names:
                    self.add_value(value)

    def add_value(self, value: Any) -> None:
        """Add what a value has of functions: itself, what it wraps, what it holds, the methods of a class."""
        if isinstance(value, (list, tuple, set, dict)):
            if self._is_new(value):
                # By what is there already: a dictionary of another class may make its values when it is asked.
                for one in list(dict.values(value) if isinstance(value, dict) else value):
                    self.add_value(one)
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, type):
            self.add_class(value)
            self._add_constructors(value)
        elif isinstance(value, _HOLDERS) or "__wrapped__" in getattr(value, "__dict__", ()):
            self._unwrap(value)

    def _add_constructors(self, cls: type) -> None:
        for base in cls.__mro__:
            if not _is_foreign(base.__module__):
                self.add_value([vars(base).get(name) for name in ("__init__", "__post_init__")])

    def _is_new(self, value: Any) -> bool:
        if id(value) in self.seen:
            return False
        self.seen.add(id(value))
        self.kept.append(value)
        return True

    def _add_function(self, function: FunctionType) -> None:
        if not self._is_new(function):
            return
        # A wrapper of torch's own (no_grad, disable) is left alone, and what it wraps is not.
        if not _is_foreign_file(function.__code__.co_filename):
            self.found.append(function)
        self._unwrap(function)
        for cell in function.__closure__ or ():
            self.add_value(_contents(cell))

    def _unwrap(self, value: Any) -> None:
        for name in _UNWRAPPED:
            inner = getattr(value, name, None)
            if inner is not None and inner is not value:
                self.add_value(inner)

    def _follow(self, function: FunctionType) -> None:
        names = list(_names(function.__code__))
        for name in names:
            if name not in self.names:
                self.names.add(name)
                self.add_value(list(self.methods.get(name, ())))
            value = function.__globals__.get(name)
            if not isinstance(value, ModuleType):
                self.add_value(value)
            elif not _is_foreign(value.__name__):
                # By what is there already: asking a lazy module for an attribute would import it.
                self.add_value([vars(value).get(other) for other in names])


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _is_foreign(module: str | None) -> bool:
    """Whether a module is torch's or Python's own."""
    top = (module or "builtins").partition(".")[0]
    return top != "__main__" and (top == "torch" or top in sys.stdlib_module_names)


def _is_foreign_file(path: str) -> bool:
    return path.startswith((TORCH_FOLDER, "<frozen")) or (path.startswith(_LIBRARY) and "site-packages" not in path)
