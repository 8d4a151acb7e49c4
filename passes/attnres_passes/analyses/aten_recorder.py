"""Analysis: the ATen operations behind every node of a captured graph, found by running it once on fake tensors.

Executing the graph under a dispatch mode makes composites decompose by themselves, so that one rule table over ATen
operators serves every spelling. The graph is executed as a whole, in order, and not node by node from recorded
values, because some graphs hold paired nodes that switch a state (vmap levels, grad mode, autocast).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from attnres_passes.analyses.aten_trace import LOCAL_PART, OPAQUE, SPREAD, STALE_ALIAS, AtenTrace, Op, Ref, Value
from attnres_passes.torch_private.example_values import (
    example_value,
    fake_mode_of,
    is_fake,
    is_plain_tensor,
    is_wrapper,
    size_token,
    sizes_as_symbols,
    storage_id,
    without_new_guards,
)
from attnres_passes.torch_private.operators import is_composite, is_operator
from attnres_passes.torch_private.ranks.dtensors import held, is_spread, placed
from attnres_passes.torch_private.state import restored_torch_state


def trace_aten(gm: GraphModule) -> AtenTrace:
    """Execute ``gm`` once on the fake values of its placeholders and note what happened.

    Neither the graph, nor the random state, nor guards and symbols of a compilation in progress change.
    """
    nodes = list(gm.graph.nodes)
    examples = [example_value(node) for node in nodes if node.op == "placeholder"]
    fake_mode = fake_mode_of(examples)
    trace = AtenTrace(nodes)
    recorder = Recorder(trace)
    # A fake mode that is already active must not be entered twice; a recorder outside of it sees fake tensors.
    with restored_torch_state(), without_new_guards(fake_mode), fake_mode, sizes_as_symbols(gm), recorder:
        _RecordingInterpreter(gm, recorder, fake_mode).run(*examples, enable_io_processing=False)
    keep_live(trace)
    return trace


def keep_live(trace: AtenTrace) -> None:
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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers tensors and adds each dispatched operation to the trace.

    inside: values that the node at work was given, if a tensor subclass that holds others is among them; held_by: by
    identity of what a rank holds of a DTensor, the number of that.
    """

    supports_higher_order_operators = True

    def __init__(self, trace: AtenTrace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.node = 0
        self.number_of: dict[int, tuple[int, int]] = {}
        self.storage_version: dict[int, tuple[int, int]] = {}
        self.alive: list[torch.Tensor] = []
        self.inside: tuple[int, ...] = ()
        self.held_by: dict[int, int] = {}

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
        self.begin_operation()
        recorded_args = tree_map_only(torch.Tensor, lambda tensor: Ref(self.lookup(tensor)), (args, kwargs))
        out = func(*args, **kwargs)
        self.add(func, recorded_args, args, kwargs, out)
        return out

    def begin_operation(self) -> None:
        """Called before an operation is added, and before its arguments are looked up."""

    def lookup(self, tensor: torch.Tensor) -> int:
        """The number of ``tensor`` now: a new one if its storage was written through another tensor meanwhile."""
        known, holder = self.number_of.get(id(tensor)), self.held_by.get(id(tensor))
        if holder is not None and (known is None or holder in self.inside):
            return self.append_derived(LOCAL_PART, holder, tensor)
        if known is None:
            if is_spread(tensor) and (id(held(tensor)) in self.number_of or id(held(tensor)) in self.held_by):
                return self.append_derived(SPREAD, self.lookup(held(tensor)), tensor)
            if self.inside:
                # What a tensor subclass holds (the local part of a DTensor), which nothing gave to the node by itself.
                return self.append(OPAQUE, tuple(map(Ref, self.inside)), {}, self.inside, [tensor])[0]
            return self.number_given(tensor)
        value, seen_version = known
        version, writer = self.storage_version.get(storage_id(tensor), (0, -1))
        if version == seen_version:
            return value
        return self.append(STALE_ALIAS, (Ref(value), Ref(writer)), {}, (value, writer), [tensor])[0]

    def append_derived(self, target: str, source: int, tensor: torch.Tensor) -> int:
        """Number a DTensor made of what a rank holds of it, or what a rank holds of a DTensor.

        Args:
            target: SPREAD or LOCAL_PART.
            source: number of the other one.
            tensor: to number.
        """
        return self.append(target, (Ref(source),), {}, (source,), [tensor])[0]

    def number_given(self, tensor: torch.Tensor) -> int:
        """The number of a tensor that no operation of the trace made."""
        return self.number(tensor, producer=-1)

    def number_unseen(self, result: Any, inputs: tuple[int, ...]) -> None:
        """Number results that no dispatched operation made: they depend in an unknown way on all ``inputs``."""
        unseen = [leaf for leaf in tree_leaves(result) if is_plain_tensor(leaf) and id(leaf) not in self.number_of]
        for tensor in filter(is_spread, unseen):
            self.lookup(tensor)
        unseen = [leaf for leaf in unseen if id(leaf) not in self.number_of]
        if not unseen:
            return
        if inputs:
            self.append(OPAQUE, tuple(Ref(value) for value in inputs), {}, inputs, unseen)
            return
        for tensor in unseen:
            self.number(tensor, producer=-1)

    def number(self, tensor: torch.Tensor, producer: int) -> int:
        value = len(self.trace.values)
        shape = tuple(size_token(size) for size in tensor.shape)
        self.trace.values.append(Value(shape, tensor.dtype, producer, storage_id(tensor), placed(tensor)))
        self.trace.users.append([])
        version, _ = self.storage_version.get(storage_id(tensor), (0, -1))
        self.number_of[id(tensor)] = (value, version)
        if is_spread(tensor):
            self.held_by[id(held(tensor))] = value
        self.keep(tensor)
        return value

    def keep(self, tensor: torch.Tensor) -> None:
        """Have what a tensor is known by stay its own: its id(), and its storage's. Fake tensors simply stay alive."""
        self.alive.append(tensor)

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

    def add(self, func: Any, recorded: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        recorded_args, recorded_kwargs = recorded
        inputs = tuple(leaf.value for leaf in tree_leaves(recorded) if isinstance(leaf, Ref))
        written = list(_written_tensors(func, args, kwargs))
        returned = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        fresh = [leaf for leaf in returned if not any(leaf is tensor for tensor in written)]
        for tensor in written:
            version, _ = self.storage_version.get(storage_id(tensor), (0, -1))
            # Numbered below, by append: the writer is the first output.
            self.storage_version[storage_id(tensor)] = (version + 1, len(self.trace.values))
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


class _RecordingInterpreter(Interpreter):
    """Runs the graph and notes, for each node, the numbers of what it read and gave."""

    def __init__(self, gm: GraphModule, recorder: Recorder, fake_mode: Any) -> None:
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
        holds = any(is_wrapper(self.env.get(argument)) for argument in n.all_input_nodes)
        recorder.inside = tuple(dict.fromkeys(trace.node_inputs[-1].values())) if holds else ()
        result = super().run_node(n)
        recorder.inside = ()
        if n.op == "get_attr":
            result = self._fake(result)
        if n.op == "output":
            trace.graph_outputs = tuple(recorder.lookup(leaf) for leaf in tree_leaves(result) if is_plain_tensor(leaf))
        else:
            is_given = n.op in ("placeholder", "get_attr")
            inputs = () if is_given else tuple(dict.fromkeys(trace.node_inputs[-1].values()))
            recorder.number_unseen(result, inputs)
        trace.node_ops[-1].extend(range(first_op, len(trace.ops)))
        trace.node_output.append(recorder.lookup(result) if is_plain_tensor(result) else None)
        return result

    def _number(self, node: Node) -> int | None:
        result: Any = self.env.get(node)
        return self.recorder.lookup(result) if is_plain_tensor(result) else None

    def _fake(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not is_fake(value):
            return self.fake_mode.from_tensor(value, static_shapes=True)
        return value
