"""Executes a graph on tensors without data, forward and backward, and counts: FLOPs, what autograd keeps, launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from attnres_compile.report.counting import attention
from attnres_compile.report.counting.formulas import FORMULAS
from attnres_compile.report.counting.places import MARK, Mark
from attnres_kernels.operators.definition import definition_of, register_flop_formulas
from attnres_passes.torch_private.example_values import example_value, storage_id
from attnres_passes.torch_private.recompute import checkpoint_in_python, is_made_again
from attnres_passes.torch_private.state import restored_torch_state


@dataclass(frozen=True)
class Sum:
    """Tensors that are summed over ranks, and their bytes."""

    calls: int = 0
    bytes: int = 0

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.calls + other.calls, self.bytes + other.bytes)


@dataclass(frozen=True)
class Counted:
    """What one execution counted."""

    forward: Counter[str]
    """FLOPs by operator."""
    training: Counter[str] | None
    """FLOPs of both directions; None where nothing wants a gradient."""
    saved_bytes: int
    """Bytes of distinct storages that autograd keeps for the backward, apart from inputs of the graph."""
    uncounted: Counter[str]
    """Calls of operators without a formula, in both directions."""
    launches: tuple[int, int]
    """Launches of our kernels, forward, and in both directions."""
    again: Counter[str] = field(default_factory=Counter)
    """FLOPs, among those of both directions, of what checkpoints run again in the backward."""
    saved_fused_bytes: int = 0
    """``saved_bytes`` if each norm behind a read, outside of checkpoints, were one kernel that keeps the state only."""
    summed: tuple[Sum, Sum] = (Sum(), Sum())
    """What tensor-parallel ranks sum, in the forward, and in what checkpoints run again."""


def count(gm: GraphModule, inputs: Sequence[Any], keeps_inputs: bool = False) -> Counted:
    """Execute a graph forward and, where something wants a gradient, backward.

    Args:
        gm: with one output or several.
        inputs: of its placeholders, tensors on the meta device.
        keeps_inputs: count inputs that autograd keeps, too, but for vectors, which are parameters.
    """
    register_flop_formulas()
    runner = _Runner(gm, inputs, keeps_inputs)
    forward, calls = FlopCounterMode(display=False, custom_mapping=FORMULAS), _Calls()
    with restored_torch_state(), torch.enable_grad(), runner.watched(), forward, calls:
        outputs = runner.run(*inputs)
    launched = calls.launches
    leaves = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    ends = [value for value in tree_leaves(outputs) if isinstance(value, Tensor) and value.requires_grad]
    training = None
    made = _by_operator(forward)
    if leaves and ends:
        backward = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with backward, calls:
            torch.autograd.grad(ends, leaves, [torch.empty_like(end) for end in ends], allow_unused=True)
        training = made + _by_operator(backward)
    counted = set(FORMULAS) | set(forward.flop_registry)
    uncounted = Counter({str(name): number for name, number in calls.numbers.items() if name not in counted})
    return Counted(
        made,
        training,
        runner.saved.bytes_without(runner.left_out()),
        uncounted,
        (launched, calls.launches),
        runner.checkpoints.again,
        runner.saved_fused_bytes(),
        runner.checkpoints.summed(),
    )


def weightless(gm: GraphModule, dtype: torch.dtype, shapes: Mapping[Node, Sequence[int]]) -> list[Tensor]:
    """Inputs on the meta device for the placeholders of a graph, by their example values; floating ones want gradients.

    Args:
        gm: whose placeholders are read.
        dtype: of those without an example value, the parameters of reads.
        shapes: of these.
    """
    made = []
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            value = example_value(node)
            if node in shapes:
                value = torch.empty(tuple(shapes[node]), dtype=dtype, device="meta")
            made.append(_on_meta(value) if isinstance(value, Tensor) else value)
    return made


def _on_meta(value: Tensor) -> Tensor:
    sizes = [int(size) for size in value.shape]
    empty = torch.empty(sizes, dtype=value.dtype, device="meta")
    return empty.requires_grad_() if value.is_floating_point() else empty


def _by_operator(counter: FlopCounterMode) -> Counter[str]:
    return Counter({str(name): number for name, number in counter.get_flop_counts().get("Global", {}).items()})


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of every operator that does something, which views and questions about tensors do not, and the
    launches of our kernels by these calls.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: Counter[Any] = Counter()
        self.launches = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view and func.namespace != "prim":
            self.numbers[func.overloadpacket] += 1
            definition = definition_of(func)
            self.launches += 0 if definition is None else definition.launches(definition.bound(args, kwargs))
        return func(*args, **(kwargs or {}))


@dataclass
class _Saved:
    """Storages that autograd keeps, by identity; the tensors are held, so that none is used twice."""

    bytes_of: dict[int, int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.bytes_of[storage_id(tensor)] = storage.nbytes()
        self.alive.append(tensor)
        return tensor

    def bytes_without(self, storages: set[int]) -> int:
        return sum(size for storage, size in self.bytes_of.items() if storage not in storages)


class _Checkpoints:
    """Runs the checkpoints of a graph as Python does. again: FLOPs of what is run a second time; sums: of each run."""

    def __init__(self) -> None:
        self.again: Counter[str] = Counter()
        self.sums = [Sum(), Sum()]
        self.running = 0

    def run(self, body: GraphModule, *operands: Any, **options: Any) -> Any:
        """The checkpoint of a body.

        Args:
            body: the graph.
            operands: what it is given.
            options: keywords of ``torch.utils.checkpoint``.
        """
        runs: list[None] = []

        def call(*args: Any) -> Any:
            runs.append(None)
            if len(runs) == 1:
                return _Body(body, self).run(*args)
            counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
            self.running = 1
            try:
                with counter:
                    return _Body(body, self).run(*args)
            finally:  # torch leaves the second run as soon as it has what the backward needs
                self.running = 0
                self.again += _by_operator(counter)

        return checkpoint(call, *operands, **{**options, "use_reentrant": False})

    def note(self, node: Node, result: Any) -> None:
        """What a node gives, in the forward or in a second run."""
        if Mark.SUMMED in node.meta.get(MARK, ()):
            self.sums[self.running] += Sum(1, result.untyped_storage().nbytes())

    def summed(self) -> tuple[Sum, Sum]:
        return self.sums[0], self.sums[1]


class _Attending(Interpreter):
    """Runs a graph with attention as one operator, and checkpoints as Python does."""

    checkpoints: _Checkpoints

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.nn.functional.scaled_dot_product_attention:
            return attention.attend(*args, **kwargs)
        if target is checkpoint_in_python:
            return self.checkpoints.run(*args, **kwargs)
        return super().call_function(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        self.checkpoints.note(n, result)
        return result


class _Body(_Attending):
    def __init__(self, gm: GraphModule, checkpoints: _Checkpoints) -> None:
        super().__init__(gm)
        self.checkpoints = checkpoints


class _Runner(_Attending):
    """Runs the graph, and notes what is made again in the backward and what norms outside of checkpoints make."""

    def __init__(self, gm: GraphModule, inputs: Sequence[Any], keeps_inputs: bool) -> None:
        super().__init__(gm)
        self.saved = _Saved()
        self.checkpoints = _Checkpoints()
        given = [value for value in inputs if isinstance(value, Tensor) and not (keeps_inputs and value.ndim > 1)]
        self.given = {storage_id(value) for value in given}
        self.remade: list[Tensor] = []
        self.marked: dict[Mark, list[Tensor]] = {Mark.INSIDE: [], Mark.STATE: []}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if is_made_again(n):
            self.remade.extend(tensors)
        for mark, marked in self.marked.items():
            if mark in n.meta.get(MARK, ()):
                marked.extend(tensors)
        return result

    @contextmanager
    def watched(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.saved.keep, lambda tensor: tensor):
            yield

    def left_out(self) -> set[int]:
        """Storages that are not counted."""
        return self.given | {storage_id(tensor) for tensor in self.remade}

    def saved_fused_bytes(self) -> int:
        """With the states that norms read kept, and nothing else from inside of these norms."""
        inside = {storage_id(tensor) for tensor in self.marked[Mark.INSIDE]}
        states = {storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in self.marked[Mark.STATE]}
        left_out = self.left_out()
        kept = sum(size for storage, size in states.items() if storage not in left_out)
        return kept + self.saved.bytes_without(left_out | inside | states.keys())
