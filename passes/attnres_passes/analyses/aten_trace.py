"""Analysis: the ATen operations behind every node of a captured graph, found by running it once on fake tensors.

Dynamo's graph is at the level of torch functions: an addition may be ``operator.add``, ``torch.add``, ``iadd``,
``Tensor.add_``, and a norm may be one node or ten. Executing the graph under a dispatch mode makes composites
decompose by themselves, so that one rule table over ATen operators serves every spelling. Values are numbered, and
a tensor changed in place gets a new number: what a node reads is the number its argument had at that moment.

The graph is executed as a whole, in order, and not node by node from recorded values, because some graphs hold
paired nodes that switch a state (vmap levels, grad mode, autocast).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from attnres_passes.torch_private.example_values import (
    example_value,
    fake_mode_of,
    is_fake,
    is_plain_tensor,
    size_token,
    without_new_guards,
)
from attnres_passes.torch_private.operators import is_composite, is_operator
from attnres_passes.torch_private.state import restored_torch_state

OPAQUE = "opaque"
"""Target of an operation that dispatch could not see into: its outputs depend on its inputs in an unknown way."""

STALE_ALIAS = "stale_alias"
"""Target of the pseudo-operation that reads a tensor whose storage was changed through another tensor."""


@dataclass(frozen=True)
class Ref:
    """Stands for the tensor with this value number in the recorded arguments of an operation."""

    value: int


@dataclass(frozen=True)
class Value:
    """One tensor at one moment.

    shape: ints, and sympy expressions for dynamic sizes; producer: index of the operation, or -1 for an input of
    the graph; storage: the same for values that share memory.
    """

    shape: tuple[Any, ...]
    dtype: torch.dtype
    producer: int
    storage: int

    @property
    def is_floating(self) -> bool:
        return self.dtype.is_floating_point


@dataclass(frozen=True)
class Op:
    """One executed ATen operation.

    node: index of the graph node that it was executed for; changes: the inputs that it changes in place, which have
    new numbers among the outputs.
    """

    index: int
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: int
    changes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``aten.add`` for any overload, or OPAQUE, STALE_ALIAS."""
        return str(self.target.overloadpacket) if hasattr(self.target, "overloadpacket") else str(self.target)


@dataclass
class AtenTrace:
    """All operations and values of one execution, and what each node of the graph read and gave.

    node_inputs[k]: value number of every tensor argument of node k, when k began.
    node_output[k]: value number of node k's tensor output, where it is one tensor.
    node_ops[k]: indices of the operations executed for node k, dead ones left out.
    users[v]: indices of the operations that read value v, dead ones left out.
    grad_enabled[k]: whether gradients were recorded when node k began.
    """

    nodes: list[Node]
    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    users: list[list[int]] = field(default_factory=list)
    node_inputs: list[dict[Node, int]] = field(default_factory=list)
    node_output: list[int | None] = field(default_factory=list)
    node_ops: list[list[int]] = field(default_factory=list)
    grad_enabled: list[bool] = field(default_factory=list)
    graph_outputs: tuple[int, ...] = ()

    def add_value(self, tensor: torch.Tensor, producer: int) -> int:
        shape = tuple(size_token(size) for size in tensor.shape)
        self.values.append(Value(shape, tensor.dtype, producer, _storage(tensor)))
        self.users.append([])
        return len(self.values) - 1

    @cached_property
    def _records_gradients(self) -> bool:
        return any(self.grad_enabled)

    def cuts_gradients(self, node: int) -> bool:
        """Whether node ``node`` is under ``torch.no_grad`` in a graph that records gradients elsewhere."""
        return self._records_gradients and not self.grad_enabled[node]


def trace_aten(gm: GraphModule) -> AtenTrace:
    """Execute ``gm`` once on the fake values of its placeholders and record what happened.

    Neither the graph, nor the random state, nor guards and symbols of a compilation in progress change.
    """
    nodes = list(gm.graph.nodes)
    examples = [example_value(node) for node in nodes if node.op == "placeholder"]
    fake_mode = fake_mode_of(examples)
    trace = AtenTrace(nodes)
    recorder = _Recorder(trace)
    # A fake mode that is already active must not be entered twice; a recorder outside of it sees fake tensors.
    with restored_torch_state(), without_new_guards(fake_mode), fake_mode, recorder:
        _RecordingInterpreter(gm, recorder, fake_mode).run(*examples, enable_io_processing=False)
    _keep_live(trace)
    return trace


def _keep_live(trace: AtenTrace) -> None:
    """Take operations that nothing depends on out of ``users`` and ``node_ops``: a dead reader reads nothing.

    Code may compute what it does not return, and autograd views are made again after a change in place.
    """
    live_values = set(trace.graph_outputs)
    live: set[int] = set()
    for op in reversed(trace.ops):
        if _is_mutable(op.target) or not live_values.isdisjoint(op.outputs):
            live.add(op.index)
            live_values.update(op.inputs)
    trace.users = [[op for op in users if op in live] for users in trace.users]
    trace.node_ops = [[op for op in ops if op in live] for ops in trace.node_ops]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers tensors and records each dispatched operation into the trace."""

    supports_higher_order_operators = True

    def __init__(self, trace: AtenTrace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.node = 0
        self.number_of: dict[int, tuple[int, int]] = {}
        self.storage_version: dict[int, tuple[int, int]] = {}
        # Identity of a tensor is its id(), so every tensor seen must stay alive.
        self.alive: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_operator(func) and func.namespace == "prim":
            return func(*args, **kwargs)  # a question about a tensor (its device, its layout), not an operation
        if is_composite(func):
            # Composites reach a mode undecomposed only under inference mode.
            with self:
                return func.decompose(*args, **kwargs)
        recorded_args = tree_map_only(torch.Tensor, lambda tensor: Ref(self.lookup(tensor)), (args, kwargs))
        out = func(*args, **kwargs)
        self.record(func, recorded_args, args, kwargs, out)
        return out

    def lookup(self, tensor: torch.Tensor) -> int:
        """The number of ``tensor`` now: a new one if its storage was written through another tensor meanwhile."""
        known = self.number_of.get(id(tensor))
        if known is None:
            return self.number(tensor, producer=-1)
        value, seen_version = known
        version, writer = self.storage_version.get(_storage(tensor), (0, -1))
        if version == seen_version:
            return value
        return self.append(STALE_ALIAS, (Ref(value), Ref(writer)), {}, (value, writer), [tensor])[0]

    def number(self, tensor: torch.Tensor, producer: int) -> int:
        value = self.trace.add_value(tensor, producer)
        version, _ = self.storage_version.get(_storage(tensor), (0, -1))
        self.number_of[id(tensor)] = (value, version)
        self.alive.append(tensor)
        return value

    def append(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: tuple[int, ...],
        outputs: list[torch.Tensor],
        changes: tuple[int, ...] = (),
    ) -> tuple[int, ...]:
        index = len(self.trace.ops)
        numbers = tuple(self.number(tensor, index) for tensor in outputs)
        self.trace.ops.append(Op(index, target, args, kwargs, inputs, numbers, self.node, changes))
        for value in dict.fromkeys(inputs):
            self.trace.users[value].append(index)
        return numbers

    def record(self, func: Any, recorded: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        recorded_args, recorded_kwargs = recorded
        inputs = tuple(leaf.value for leaf in tree_leaves(recorded) if isinstance(leaf, Ref))
        written = list(_written_tensors(func, args, kwargs))
        returned = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        fresh = [leaf for leaf in returned if not any(leaf is tensor for tensor in written)]
        for tensor in written:
            version, _ = self.storage_version.get(_storage(tensor), (0, -1))
            # Numbered below, by append: the writer is the first output.
            self.storage_version[_storage(tensor)] = (version + 1, len(self.trace.values))
        changes = tuple(self.number_of[id(tensor)][0] for tensor in written)
        self.append(func, recorded_args, recorded_kwargs, inputs, [*written, *fresh], changes)


def _written_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The arguments that the operator's schema says are changed in place."""
    if not _is_mutable(func):
        return
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))


def _is_mutable(target: Any) -> bool:
    return is_operator(target) and target._schema.is_mutable


def _storage(tensor: torch.Tensor) -> int:
    # Tensors without storage (sparse, functional wrappers) alias nothing that a stream could hold.
    if tensor.layout is not torch.strided:
        return -id(tensor)
    return int(tensor.untyped_storage()._cdata)


class _RecordingInterpreter(Interpreter):
    """Runs the graph and notes, for each node, the numbers of what it read and gave."""

    def __init__(self, gm: GraphModule, recorder: _Recorder, fake_mode: Any) -> None:
        super().__init__(gm)
        self.recorder = recorder
        self.fake_mode = fake_mode

    def run_node(self, n: Node) -> Any:
        recorder, trace = self.recorder, self.recorder.trace
        recorder.node = len(trace.node_inputs)
        trace.node_inputs.append(
            {node: number for node in n.all_input_nodes if (number := self._number(node)) is not None}
        )
        trace.node_ops.append([])
        trace.grad_enabled.append(torch.is_grad_enabled())
        first_op = len(trace.ops)
        result = super().run_node(n)
        if n.op == "get_attr":
            result = self._fake(result)
        if n.op == "output":
            trace.graph_outputs = tuple(recorder.lookup(leaf) for leaf in tree_leaves(result) if is_plain_tensor(leaf))
        else:
            self._number_unseen_outputs(n, result)
        trace.node_ops[-1].extend(range(first_op, len(trace.ops)))
        trace.node_output.append(recorder.lookup(result) if is_plain_tensor(result) else None)
        return result

    def _number(self, node: Node) -> int | None:
        result: Any = self.env.get(node)
        return self.recorder.lookup(result) if is_plain_tensor(result) else None

    def _number_unseen_outputs(self, n: Node, result: Any) -> None:
        """Outputs that no dispatched operation made depend in an unknown way on all that the node read."""
        unseen = [
            leaf for leaf in tree_leaves(result) if is_plain_tensor(leaf) and id(leaf) not in self.recorder.number_of
        ]
        if not unseen:
            return
        inputs = tuple(dict.fromkeys(self.recorder.trace.node_inputs[-1].values()))
        if n.op in ("placeholder", "get_attr") or not inputs:
            for tensor in unseen:
                self.recorder.number(tensor, producer=-1)
            return
        refs = tuple(Ref(value) for value in inputs)
        self.recorder.append(OPAQUE, refs, {}, inputs, unseen)

    def _fake(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not is_fake(value):
            return self.fake_mode.from_tensor(value, static_shapes=True)
        return value
