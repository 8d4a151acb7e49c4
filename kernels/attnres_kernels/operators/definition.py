"""One definition an operator, from which everything that is known of an operator is read.

A definition has the operator's name, its arguments as a tuple with names, what it runs, what its results look like
without data, the kernels that one call launches, its FLOPs, and what a call works on. The operator of torch, its fake,
its FLOP formula, launches, memory traffic and the inspection's table come from it. A schema of torch is flat: nested
tuples of the arguments are laid flat here and put together again, and nowhere else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_type_hints

import torch
from torch import Tensor

from attnres_kernels.generation.specs import KernelSpec, launches_of
from attnres_kernels.generation.traffic import Traffic, traffic_of
from attnres_kernels.launch.load_triton import triton_operator

Arguments = TypeVar("Arguments", bound=tuple[Any, ...])
Function = TypeVar("Function", bound=Callable[..., Any])


class Shaped(NamedTuple):
    """Stands for a tensor of which only the shape counts."""

    shape: Sequence[int]


class Work(NamedTuple):
    """What a call goes over: completed blocks, reads, and what it takes in beside them, in words; None if not known."""

    sources: int | None = None
    reads: int | None = None
    takes_in: Sequence[str] = ()


@dataclass(frozen=True)
class OperatorDefinition(Generic[Arguments]):
    """An operator of torch, and what is known of it.

    name: with the namespace, ``attnres::..``; arguments: tuple with names, whose fields may be such tuples; returns:
    the type of the results; run, fake: from the arguments to the results, and to tensors of their shapes; kernels: what
    one call launches, none for an operator on torch calls; flops: of one call, None if torch's counter leaves it out;
    work: what a call goes over; computes: functions of the scheduled level that it computes.
    """

    name: str
    arguments: type[Arguments]
    returns: Any
    run: Callable[[Arguments], Any]
    fake: Callable[[Arguments], Any]
    kernels: Callable[[Arguments], Sequence[KernelSpec]] = lambda call: ()
    flops: Callable[[Arguments], int] | None = None
    work: Callable[[Arguments], Work] = lambda call: Work()
    computes: Sequence[Callable[..., Any]] = ()
    make: Callable[[str], Callable[[Callable[..., Any]], Any]] = triton_operator
    operator: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.name not in DEFINITIONS, f"{self.name} is defined twice"
        operator = self.make(self.name)(self._flat_function(self.run))
        operator.register_fake(self._flat_function(self.fake))
        object.__setattr__(self, "operator", operator)
        DEFINITIONS[self.name] = self
        for function in self.computes:
            described_by(self)(function)

    def __call__(self, call: Arguments) -> Any:
        """Call the operator."""
        return self.operator(*flat(call))

    def launches(self, call: Arguments) -> int:
        """Kernels that a call launches."""
        return sum(map(launches_of, self.kernels(call)))

    def traffic(self, call: Arguments) -> Traffic:
        """What the kernels of a call read and write per token, in units of the width."""
        return sum(map(traffic_of, self.kernels(call)), Traffic(0, 0))

    def bound(self, args: Sequence[Any], given: Mapping[str, Any] | None = None) -> Arguments:
        """The arguments of a call of the operator of torch.

        Args:
            args: by position, flat.
            given: by name.
        """
        return self.named({**dict(zip(_leaves(self.arguments), args, strict=False)), **(given or {})})

    def named(self, given: Mapping[str, Any]) -> Arguments:
        """The arguments that are called as in ``given``; the others are their defaults, or None."""
        return cast(Arguments, _by_name(self.arguments, given))

    def _flat_function(self, function: Callable[[Arguments], Any]) -> Callable[..., Any]:
        def of_flat(*args: Any) -> Any:
            return function(cast(Arguments, _put_together(self.arguments, iter(args))))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, annotation=x) for name, x in _leaves(self.arguments).items()]
        of_flat.__signature__ = inspect.Signature(parameters, return_annotation=self.returns)  # type: ignore[attr-defined]
        return of_flat


DEFINITIONS: dict[str, OperatorDefinition[Any]] = {}
"""All definitions by name."""

_DESCRIBED_BY: dict[Callable[..., Any], OperatorDefinition[Any]] = {}


def torch_operator(*tags: torch.Tag) -> Callable[[str], Callable[[Callable[..., Any]], Any]]:
    """How an operator on torch calls is made, which a compiler does not look into."""
    return lambda name: torch.library.custom_op(name, mutates_args=(), tags=tags)


any_layout = torch_operator(torch.Tag.flexible_layout)
"""``torch_operator`` for operators that take inputs of any layout, of which a compiler then copies none."""


def described_by(definition: OperatorDefinition[Any]) -> Callable[[Function], Function]:
    """Decorator that says which operator a function of graphs is of; its arguments are called as the operator's."""

    def remember(function: Function) -> Function:
        _DESCRIBED_BY[function] = definition
        return function

    return remember


def definition_of(target: Any) -> OperatorDefinition[Any] | None:
    """The definition of what a node of a graph calls, a function or an operator; None if it has none."""
    if target in _DESCRIBED_BY:
        return _DESCRIBED_BY[target]
    return DEFINITIONS.get(str(getattr(target, "overloadpacket", target)).replace(".", "::", 1))


@cache
def register_flop_formulas() -> None:
    """Register the formulas with ``torch.utils.flop_counter``, which imports Triton where it is installed."""
    from torch.utils.flop_counter import register_flop_formula

    for name, definition in DEFINITIONS.items():
        if definition.flops is not None:
            packet = getattr(torch.ops.attnres, name.removeprefix("attnres::"))
            register_flop_formula(packet)(_flop_formula(definition))


def _flop_formula(definition: OperatorDefinition[Any]) -> Callable[..., int]:
    """From shapes in place of tensors."""

    arguments: Any = definition.arguments
    kinds = _leaves(arguments)

    def formula(*shapes: Any, **named: Any) -> int:
        assert definition.flops is not None
        given = {**dict(zip(kinds, shapes, strict=False)), **named}
        known = {name: _shaped(kind, given[name]) for name, kind in kinds.items() if name in given}
        return definition.flops(definition.named(known))

    return formula


def _shaped(kind: Any, value: Any) -> Any:
    """The value of an argument of this type, with the shapes in it as what stands for their tensors."""
    if value is None or "Tensor" not in str(kind):
        return value
    if "Sequence" in str(kind):
        return [None if shape is None else Shaped(shape) for shape in value]
    return Shaped(value)


# Nested tuples with names, laid flat


def flat(call: tuple[Any, ...]) -> list[Any]:
    """The leaves of nested tuples with names, in order."""
    leaves: list[Any] = []
    for x in call:
        is_nested = isinstance(x, tuple) and hasattr(x, "_fields")  # Dynamo asks no number for its attributes
        leaves += flat(x) if is_nested else [x]
    return leaves


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _leaves(kind: Any) -> dict[str, Any]:
    """The types of all leaves by name."""
    found: dict[str, Any] = {}
    for name, hint in _fields(kind).items():
        found |= _leaves(hint) if hasattr(hint, "_fields") else {name: hint}
    return found


def _put_together(kind: Any, leaves: Iterator[Any]) -> Any:
    hints = _fields(kind).values()
    return kind(*(_put_together(hint, leaves) if hasattr(hint, "_fields") else next(leaves) for hint in hints))


def _by_name(kind: Any, given: Mapping[str, Any]) -> Any:
    """Whole tuples are taken by the name of their field, or else by the names of theirs."""
    found = {}
    for name, hint in _fields(kind).items():
        if name in given:
            found[name] = given[name]
        elif hasattr(hint, "_fields"):
            found[name] = _by_name(hint, given)
        else:
            found[name] = kind._field_defaults.get(name)
    return kind(**found)


def multiplied(times: int, like: Tensor) -> int:
    """FLOPs of multiplications, each with an addition.

    Args:
        times: how many there are of each element.
        like: of the shape of the elements.
    """
    return 2 * times * math.prod(like.shape)
