"""Which norm, if any, some nodes of a graph compute: found by executing them, not by their spelling.

The nodes of a ``Region`` are executed on random values of several magnitudes. Result and gradients are compared with
``x * rsqrt(mean(x^2) + eps) * weight + bias`` and ``(x - mean) * rsqrt(var + eps) * weight + bias``, for every
constant in the region as eps and every vector that it reads, or none, as weight and as bias.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from attnres_passes.torch_private.example_values import example_value, size_token
from attnres_passes.torch_private.operators import is_operator
from attnres_passes.torch_private.state import without_modes

Kind = Literal["rms", "layer"]
Given = tuple[Tensor, list[Tensor]]
"""The value that a norm reads, and its vectors."""

NO_NORM = "no norm follows"
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest error, relative to the largest element. fp32: an unbiased variance is off by 1 / 2d, rounding by 1e-6.
The others: four roundings; what is computed is judged in fp32, with the casts to these dtypes taken out."""
DTYPES = frozenset(_TOLERANCE)
_GRADIENT_TOLERANCE = 1e-4
_WIDER: Mapping[Any, Any] = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    "bfloat16": "float",
    "half": "float",
}


@dataclass(frozen=True)
class Formula:
    """A norm by its numbers. weight, bias: positions among the vectors of a region."""

    kind: Kind
    eps: float
    weight: int | None
    bias: int | None

    def __call__(self, x: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        centred = x - x.mean(-1, keepdim=True) if self.kind == "layer" else x
        result = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        result = result if self.weight is None else result * vectors[self.weight]
        return result if self.bias is None else result + vectors[self.bias]


@dataclass(frozen=True)
class Region:
    """Nodes, in graph order, that lead from the value ``read`` to the last of them.

    vectors: what else they compute with; templates: tensors of which they read the dtype and nothing else.
    """

    read: Node
    nodes: tuple[Node, ...]
    vectors: tuple[Node, ...]
    templates: tuple[Node, ...]

    @property
    def dtype(self) -> torch.dtype:
        return example_tensor(self.read).dtype

    def key(self) -> tuple[Any, ...]:
        """Calls, constants, wiring, shapes and dtypes: regions with equal keys compute one function."""
        label = {self.read: "%x"}
        label |= {node: f"%dtype {example_tensor(node).dtype}" for node in self.templates}
        label |= {node: f"%vector {k} {example_tensor(node).dtype}" for k, node in enumerate(self.vectors)}
        label |= {node: f"%{k}" for k, node in enumerate(self.nodes)}

        def spelled(leaf: Any) -> Any:
            return label[leaf] if isinstance(leaf, Node) else leaf

        calls = tuple(
            (node.op, node.target, repr(map_aggregate((node.args, node.kwargs), spelled))) for node in self.nodes
        )
        return calls, tuple(repr(signature(node)) for node in (self.read, *self.nodes))

    def run(self, x: Tensor, vectors: Sequence[Tensor], widened: bool) -> Tensor:
        """Execute the nodes.

        Args:
            x: stands for the read.
            vectors: stand for the vectors, in their order.
            widened: in fp32, with casts to half precision taken out.

        Raises:
            RefusedError: a value is changed in place, or dtypes differ from those of the graph.
        """
        wider: Mapping[Any, Any] = _WIDER if widened else {}
        templates = {node: torch.empty((), dtype=example_tensor(node).dtype) for node in self.templates}
        env: dict[Node, Any] = {
            **{node: value.to(wider.get(value.dtype, value.dtype)) for node, value in templates.items()},
            **dict(zip(self.vectors, vectors, strict=True)),
            self.read: x,
        }

        def argument(leaf: Any) -> Any:
            if isinstance(leaf, Node):
                return env[leaf]
            if isinstance(leaf, torch.device):
                return torch.device("cpu")
            return wider.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf

        for node in self.nodes:
            args: Any
            kwargs: Any
            args, kwargs = map_aggregate((node.args, node.kwargs), argument)
            target: Any = wider.get(node.target, node.target)
            before = [(leaf, leaf._version) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            is_method = node.op == "call_method"
            env[node] = getattr(args[0], target)(*args[1:], **kwargs) if is_method else target(*args, **kwargs)
            if any(leaf._version != version for leaf, version in before):
                raise RefusedError("a value inside the norm is changed in place")
            expected = example_value(node)
            if not widened and isinstance(expected, Tensor) and expected.dtype != env[node].dtype:
                raise RefusedError("dtypes inside the norm are those of autocast or of the device")
        output: Tensor = env[self.nodes[-1]]
        return output


class RefusedError(Exception):
    """Why a region is not taken for a norm, found while it is executed."""


def example_tensor(node: Node) -> Tensor:
    """The example value of a node, which is a fake tensor."""
    value = example_value(node)
    assert isinstance(value, Tensor)
    return value


def signature(node: Node) -> Any:
    """Shape and dtype of a node's value, comparable without new guards; None where it is no tensor."""
    value = example_value(node)
    if not isinstance(value, Tensor):
        return None
    return tuple(size_token(size) for size in value.shape), value.dtype


def formula_of(region: Region) -> Formula | str:
    """The norm that a region computes, or why it is none. The ambient state of torch neither matters nor changes."""
    try:
        with _isolated():
            return _Check(region).formula()
    except RefusedError as refusal:
        return str(refusal)
    except Exception as error:  # a region may call any function of the user's
        return f"what follows cannot be executed by itself ({type(error).__name__})"


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Eager execution on the CPU, without gradients, whatever is ambient."""
    default = torch.get_default_dtype()
    with (
        without_modes(),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


class _Check:
    """Executes a region on random values and compares it with formulas."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.generator = torch.Generator("cpu").manual_seed(0)
        value = example_tensor(region.read)
        leading = itertools.islice(itertools.cycle((2, 3)), value.ndim - 1)
        self.shape = (*leading, int(value.shape[-1]))
        self.is_half = region.dtype != torch.float32

    def formula(self) -> Formula | str:
        constants = _constants(self.region)
        # An eps shows where the mean square is as small; a missing one, on zeros, where a clamped divisor gives no NaN.
        magnitudes = (1.0, 1e3, *(eps**0.5 for eps in constants))
        results = self._run(magnitudes, self.is_half)
        found = next((f for f in self._formulas(constants) if _agree(f, results, _TOLERANCE[torch.float32])), None)
        if found is None:
            return NO_NORM
        if self.is_half and not _agree(found, self._run(magnitudes, False), _TOLERANCE[self.region.dtype]):
            return "the norm loses more than four roundings would"
        return found if self._gradients_agree(found) else "the gradient is not that of a norm"

    def _formulas(self, constants: Sequence[float]) -> Iterator[Formula]:
        vectors = (None, *range(len(self.region.vectors)))
        kinds: tuple[Kind, ...] = ("rms", "layer")
        for bias, weight, kind, eps in itertools.product(vectors, vectors, kinds, constants):
            yield Formula(kind, eps, weight, bias)

    def _given(self, magnitude: float, widened: bool) -> Given:
        """Random inputs; the value that is read has a mean other than zero."""
        dtypes = [example_tensor(node).dtype for node in (self.region.read, *self.region.vectors)]
        dtype, *others = [_WIDER.get(dtype, dtype) if widened else dtype for dtype in dtypes]
        x = magnitude * (self._random(*self.shape) + 0.5)
        return x.to(dtype), [self._random(self.shape[-1]).to(other) for other in others]

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _run(self, magnitudes: Sequence[float], widened: bool) -> list[tuple[Given, Tensor]]:
        given = [self._given(magnitude, widened) for magnitude in magnitudes]
        state = torch.get_rng_state()
        results = [(one, self.region.run(*one, widened)) for one in given]
        if not torch.equal(state, torch.get_rng_state()):
            raise RefusedError("the norm draws random numbers")
        return results

    def _gradients_agree(self, formula: Formula) -> bool:
        x, vectors = self._given(1.0, self.is_half)
        upstream = self._random(*self.shape)
        leaves = [x, *vectors]
        actual = _gradients(lambda x, *given: self.region.run(x, given, self.is_half), leaves, upstream)
        exact = _gradients(lambda x, *given: formula(x, given), [leaf.double() for leaf in leaves], upstream)
        return all(
            _close(one, other, max(_GRADIENT_TOLERANCE, _TOLERANCE.get(one.dtype, 0.0)))
            for one, other in zip(actual, exact, strict=True)
        )


def _agree(formula: Formula, results: Sequence[tuple[Given, Tensor]], tolerance: float) -> bool:
    return all(
        _close(result, formula(x.double(), [vector.double() for vector in vectors]), tolerance)
        for (x, vectors), result in results
    )


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Equal up to ``tolerance`` relative to the largest element, and undefined in the same places."""
    if actual.shape != expected.shape:
        return False
    largest = float(expected.nan_to_num().abs().max())
    return torch.allclose(actual.double(), expected, rtol=0.0, atol=tolerance * largest, equal_nan=True)


def _gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """Gradients in all inputs, zeros where there is none."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    if not output.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(output, leaves, upstream.to(output.dtype), materialize_grads=True))


def _constants(region: Region) -> tuple[float, ...]:
    """What eps may be: constants and default arguments of the calls, the eps of ``torch.rms_norm(.., eps=None)``, 0."""
    found: dict[float, None] = {}
    for node in region.nodes:
        leaves = [*tree_leaves((node.args, node.kwargs)), *_defaults(node.target)]
        found.update(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, float) and 0 < leaf < 1))
    return tuple(found | dict.fromkeys((torch.finfo(torch.float32).eps, 0.0)))


def _defaults(target: Any) -> list[Any]:
    if is_operator(target):
        return [argument.default_value for argument in target._schema.arguments]
    try:
        return [parameter.default for parameter in inspect.signature(target).parameters.values()]
    except (TypeError, ValueError):
        return []
