"""Tensors are found wherever an object of Python holds them, without asking it to make any."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnres_passes.analyses.eager.holders import attributes_of, tensors_in

A, B = torch.zeros(1), torch.ones(1)


class Slots:
    __slots__ = ("absent", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Output:
    first: Any
    second: Any = None


class Lazy(collections.OrderedDict[str, Any]):
    def values(self) -> Any:
        raise AssertionError("asked for its values")


class Sequence(list[Any]):
    pass


def found(value: Any) -> list[Tensor]:
    return list(tensors_in(value))


def test_holders() -> None:
    for holder in (
        [A, B],
        {"a": A, "b": (B,)},
        Output(A, {"b": B}),
        Slots([A, B]),
        Lazy(a=A, b=Slots(B)),
        Sequence([A, Output(B)]),
        Output(Sequence([A]), frozenset([B])),
    ):
        assert {id(one) for one in found(holder)} == {id(A), id(B)}, holder


def test_circles_end_and_each_tensor_comes_once() -> None:
    output = Output(A, [A])
    output.second.append(output)
    assert found((output, A)) == [A]


def test_modules_and_functions_are_not_looked_into() -> None:
    assert not found([nn.Linear(2, 2), torch.nn, lambda: A, Tensor, "text", 1.0])


def test_attributes_of_a_model_are_those_beside_its_parts() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("table", torch.zeros(2))
    model[0].cache = [A]
    assert found(attributes_of(model)) == [A]
