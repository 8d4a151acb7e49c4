"""How a value scales with the residual stream: its degree, and what a rule of an ATen operator is given.

A value has degree k if it is multiplied by ``c**k`` when the residual stream is multiplied by c > 0. Values that do
not depend on the stream, and values that are invariant to its scale, have degree 0. What fits no rule is UNKNOWN.

Examples, with s a state (degree 1) and w a weight (degree 0)::

    s @ w              1        linear operations keep the degree
    s * s              2        products add
    rsqrt(mean(s*s))  -1        roots halve, reciprocals negate
    layer_norm(s)      0        normalisations take it away
    s + w              UNKNOWN  unequal degrees have no sum
    mean(s*s) + 1e-6   2        a tiny constant beside a value with a degree is an eps
    gelu(s)            UNKNOWN
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch.utils._pytree import tree_leaves

from attnres_passes.analyses.aten_trace import Op, Ref

UNKNOWN = None
"""The degree of a value that no power of c describes."""

Degree = Fraction | None
ZERO = Fraction(0)
LARGEST_EPS = 1e-2
"""A constant up to this size, added to a value with a degree, is an eps and not a signal."""


@dataclass(frozen=True)
class Call:
    """An operation with the degrees of what it reads, as a rule looks at it.

    is_zeros: whether an argument is filled with zeros, which scale in every way.
    """

    op: Op
    degree_of: Callable[[int], Degree]
    is_zeros: Callable[[Any], bool] = lambda argument: False

    def of(self, argument: Any) -> Degree:
        """The degree of one of the arguments; 0 for what is no tensor."""
        return self.degree_of(argument.value) if isinstance(argument, Ref) else ZERO

    def degree(self, position: int = 0) -> Degree:
        """The degree of the positional argument at ``position``."""
        return self.of(self.op.args[position])

    def tensors(self, arguments: Any) -> list[Degree]:
        """Degrees of all tensors in some of the arguments, in order."""
        return [self.degree_of(leaf.value) for leaf in tree_leaves(arguments) if isinstance(leaf, Ref)]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that is given by position or by name.

        Args:
            position: where it is if it is positional.
            name: what it is called if it is not.
            default: its value if it is given in neither way.
        """
        return self.op.args[position] if position < len(self.op.args) else self.op.kwargs.get(name, default)

    def of_first(self) -> Degree:
        """The degree of the first tensor, if all other ones have degree 0."""
        first, *others = self.tensors((self.op.args, self.op.kwargs))
        return first if all(other == ZERO for other in others) else UNKNOWN


Rule = Callable[[Call], Degree | list[Degree]]
"""From a call to the degree of all its outputs, or to one each."""

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen operators in ``names``, separated by blanks."""

    def register(function: Rule) -> Rule:
        RULES.update({f"aten.{name}": function for name in names.split()})
        return function

    return register


def common(degrees: Sequence[Degree]) -> Degree:
    """The degree of a sum or concatenation: that of every part, if they agree."""
    return degrees[0] if degrees and all(degree == degrees[0] for degree in degrees) else UNKNOWN


def of_product(left: Degree, right: Degree) -> Degree:
    """The degree of a product.

    Args:
        left: degree of the one factor.
        right: degree of the other one.
    """
    return UNKNOWN if left is UNKNOWN or right is UNKNOWN else left + right


def of_power(degree: Degree, exponent: Fraction) -> Degree:
    """The degree of a power.

    Args:
        degree: of the base.
        exponent: by which it is multiplied.
    """
    return UNKNOWN if degree is UNKNOWN else degree * exponent


_SHAPE_ONLY_LIKE = "empty_like zeros_like ones_like full_like rand_like randn_like randint_like"
_SHAPE_ONLY_NEW = "new_empty new_zeros new_ones new_full new_empty_strided"
_SHAPE_ONLY_IN_PLACE = "bernoulli_ uniform_ normal_ exponential_ random_ fill_ zero_"
SHAPE_ONLY = frozenset(
    f"aten.{name}" for name in f"{_SHAPE_ONLY_LIKE} {_SHAPE_ONLY_NEW} {_SHAPE_ONLY_IN_PLACE}".split()
)
"""Operators whose result does not depend on the values of their first tensor, only on its shape."""


def is_shape_only(op: Op) -> bool:
    """Whether ``op`` takes one tensor alone and only its shape matters; values of a second tensor always matter."""
    return op.name in SHAPE_ONLY and len(op.inputs) == 1


def functional_name(op: Op) -> str:
    """``aten.add`` for ``aten.add_`` and ``aten.add``: an operator changed in place scales as the plain one."""
    return op.name.rstrip("_")
