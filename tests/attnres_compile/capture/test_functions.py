"""The functions that a call of a model may run are found by their names, and others are not."""

from __future__ import annotations

import collections
import functools
import sys
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from attnres_compile.capture.functions import functions_of
from tests.attnres_compile.capture import models

from . import helpers_of_functions as helpers


def helper(x: Tensor) -> Tensor:
    return deeper(x)


def deeper(x: Tensor) -> Tensor:
    return helpers.elsewhere(x)


def unused(x: Tensor) -> Tensor:
    return x


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def around(*args: Any) -> Any:
        return function(*args)

    return around


class Base(nn.Module):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.inherited(x) + self.constant

    @torch.no_grad()
    def inherited(self, x: Tensor) -> Tensor:
        return helper(x)

    @property
    def constant(self) -> int:
        return len(Cache().items)


class Cache:
    def __init__(self) -> None:
        self.items = [1]


class Argument:
    def forward(self) -> int:
        return 1


class Model(Base):
    def __init__(self) -> None:
        super().__init__()
        self.own = lambda x: x
        self.many = {"a": [functools.partial(models.printing)]}
        self.register_forward_hook(hook)
        self.itself = [self.many]
        self.itself.append(self.itself)

    def never(self) -> None:
        unused(torch.ones(1))


def hook(*args: Any) -> None:
    pass


def names(found: list[FunctionType]) -> set[str]:
    return {function.__qualname__.rpartition("<locals>.")[2] for function in found}


def test_what_is_reached_from_a_forward() -> None:
    found = names(functions_of(Model(), [Argument()]))
    own = {"Base.forward", "Base.inherited", "Base.constant", "Cache.__init__", "helper", "deeper", "elsewhere"}
    assert own | {"<lambda>", "printing", "hook", "Argument.forward"} <= found
    assert found.isdisjoint({"unused", "Model.never"})


def test_nothing_of_torch_or_of_python_is_among_them() -> None:
    found = functions_of(nn.Sequential(models.Stack(), nn.TransformerEncoderLayer(8, 2)))
    assert found
    assert {function.__module__ for function in found} == {models.__name__}


def test_lazy_modules_are_not_loaded() -> None:
    before = set(sys.modules)
    functions_of(Model())
    assert set(sys.modules) == before


class Lazy(collections.OrderedDict[str, Any]):
    """As transformers' tables of classes, which import what they are asked for."""

    def values(self) -> Any:
        raise AssertionError("asked for its values")


TABLE = Lazy(one=deeper)


def from_a_table(x: Tensor) -> Tensor:
    return TABLE["one"](x)


def test_a_dictionary_that_makes_its_values_is_not_asked_for_them() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return from_a_table(x)

    assert deeper in functions_of(Model())
