"""Analysis: the ATen operations of a model that Python runs, whatever graphs a compiler would make of it.

A node of the trace is a call of a torch function, as in a graph of Dynamo's, so that the same analyses serve both:
what runs is seen twice, by a mode for torch functions, which begins and ends nodes, and by the recorder for the ATen
operations inside them. Python itself is executed: loops, prints and what depends on data leave no nodes.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attnres_passes.analyses import aten_recorder
from attnres_passes.analyses.aten_recorder import Recorder, keep_live
from attnres_passes.analyses.aten_trace import OPAQUE, STALE_ALIAS, AtenTrace, Ref
from attnres_passes.analyses.eager.calls import Call, made_outside_of_torch
from attnres_passes.analyses.eager.holders import attributes_of, tensors_in
from attnres_passes.analyses.eager.module_paths import ModulePaths
from attnres_passes.torch_private.captures.python_calls import lines_until, watched_calls
from attnres_passes.torch_private.example_values import is_plain_tensor, is_wrapper, storage_id, storage_number_kept
from attnres_passes.torch_private.operators import set_grad_enabled
from attnres_passes.torch_private.ranks.dtensors import held, is_spread
from attnres_passes.torch_private.state import restored_torch_state

_RECORDERS = frozenset({__file__, aten_recorder.__file__})
_LEAVES_TORCH = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__})

_SETS_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def trace_run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AtenTrace:
    """Run ``model(*args, **kwargs)`` and note what it does.

    The last node stands for what the call returns, and for tensors that it leaves in its arguments and at modules.
    """
    around = (args, kwargs, attributes_of(model))
    given = tensors_in((list(model.parameters()), list(model.buffers()), around))
    recorder = EagerRecorder(model, given)
    with restored_torch_state(), recorder.recording():
        result = model(*args, **kwargs)
    recorder.end(tensors_in(result), tensors_in((args, kwargs, attributes_of(model))))
    return recorder.trace


class EagerRecorder(Recorder):  # type: ignore[no-untyped-call]
    """Adds a node to the trace for each outermost call of a torch function that makes or changes a tensor."""

    def __init__(self, model: nn.Module, given: Iterable[Any]) -> None:
        super().__init__(AtenTrace([]))
        self.graph = Graph()
        self.paths = ModulePaths(model)
        self.grad_enabled = torch.is_grad_enabled()
        self.call: Call | None = None
        self.entry: FrameType | None = None
        # By identity of a tensor: the node that last gave it.
        self.node_of: dict[int, Node] = {}
        # By number.
        self.inputs: dict[int, Node] = {}
        self.unplaced: list[Tensor] = []
        self.seen: dict[int, Any] = {}
        self.storages: dict[int, Any] = {}
        self.given = {storage_id(one) for one in given if is_plain_tensor(one) and self._keep_storage(one)}
        self.made_in: dict[int, int] = {}
        self.left_torch: list[int] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs meanwhile."""
        self.entry = sys._getframe(2)
        try:
            with self, _Functions(self), watched_calls(self.paths.inside, self.run_autograd_function):
                yield
        finally:
            self.entry = None

    def end(self, returned: Iterable[Tensor], around: Iterable[Tensor]) -> None:
        """Complete the trace.

        Args:
            returned: what the run returns.
            around: what can be reached besides; those that the run made are left behind.
        """
        left = (one for one in around if is_plain_tensor(one) and self._is_made(one))
        outputs = [*filter(is_plain_tensor, returned), *left]
        self.node = len(self.trace.nodes)
        inputs = self._look_up(outputs)
        self.trace.graph_outputs = tuple(self.lookup(one) for one in outputs)
        node = self.graph.output(tuple(self.node_of[id(one)] for one in outputs))
        self._append(node, inputs)
        keep_live(self.trace)

    def run_autograd_function(self, apply: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Call an autograd function: a node where it records a backward, as in a graph of Dynamo's, and else opened."""
        leaves = tree_leaves((args, kwargs))
        records = self.grad_enabled and any(leaf.requires_grad for leaf in leaves if isinstance(leaf, Tensor))
        return self.run_as_node(apply, args, kwargs) if records else apply(*args, **kwargs)

    def run_as_node(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a function; what it does is one node, unless it is a part of one."""
        if self.call is not None:
            return function(*args, **kwargs)
        self.call = call = Call(function, (args, kwargs))
        try:
            result = function(*args, **kwargs)
            self._end_call(call, result)
            return result
        finally:
            self.call = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        run = super().__torch_dispatch__
        if self.call is not None:
            return run(func, types, args, kwargs)
        # Called by no torch function, as when autograd makes a view.
        self.call = call = Call(func, (args, kwargs))
        try:
            result = run(func, types, args, kwargs)
            self._end_call(call, result)
            return result
        finally:
            self.call = None

    def begin_operation(self) -> None:
        assert self.call is not None
        if self.call.first_op is not None:
            return
        self.node = len(self.trace.nodes)
        leaves, self.inside = tree_leaves(self.call.args), ()
        inputs = self._look_up(leaf for leaf in leaves if is_plain_tensor(leaf))
        self.inside = tuple(inputs.values()) if any(map(is_wrapper, leaves)) else ()
        self._append(self._new_node(self.call.target, tuple(inputs)), inputs)
        self.call.first_op = len(self.trace.ops)

    def number_given(self, tensor: Tensor) -> int:
        """An input of the run; what shares memory with a value, or may be made of one outside of torch, is none."""
        storage = storage_id(tensor)
        sources = [self.made_in[storage]] if storage in self.made_in else []
        if not sources and storage not in self.given and tensor.dim() and tensor.is_floating_point():
            # Single numbers and indices are not followed through Python, as in a graph of Dynamo's.
            sources = self.left_torch
        if sources:
            return self._append_return(tensor, tuple(dict.fromkeys(sources)))
        value = self.number(tensor, producer=-1)
        self.unplaced.append(tensor)
        return value

    def number(self, tensor: Tensor, producer: int) -> int:
        value = super().number(tensor, producer)
        if producer >= 0:
            self.made_in[storage_id(tensor)] = value
        return value

    def keep(self, tensor: Tensor) -> None:
        """Real tensors may die while the model runs; one with the identity of a dead one is another."""
        if not self._keep_storage(tensor):
            self.alive.append(tensor)
        identity, forget = id(tensor), self.forget
        if identity not in self.seen:
            self.seen[identity] = weakref.ref(tensor, lambda _: forget(identity))
        if is_spread(tensor):
            self.keep(held(tensor))

    def _keep_storage(self, tensor: Tensor) -> bool:
        """Keep the number of a tensor's memory for it; False if it has no such memory."""
        if tensor.layout is not torch.strided:
            return False
        self.storages.setdefault(storage_id(tensor), storage_number_kept(tensor))
        return True

    def forget(self, identity: int) -> None:
        """Have a tensor of some identity be one that was not seen before."""
        for known in (self.seen, self.number_of, self.node_of, self.held_by):
            known.pop(identity, None)

    def _is_made(self, tensor: Tensor) -> bool:
        return id(tensor) in self.number_of and storage_id(tensor) not in self.given

    def append_derived(self, target: str, source: int, tensor: Tensor) -> int:
        return self._append_return(tensor, (source,), target)

    def _append_return(self, tensor: Tensor, sources: tuple[int, ...], target: str = OPAQUE) -> int:
        """The number of a tensor that Python made of some values outside of torch, at a node of its own."""
        is_inside = self.call is not None and self.call.first_op is not None
        self.node = self.node if is_inside else len(self.trace.nodes)
        (value,) = self.append(target, tuple(map(Ref, sources)), {}, sources, [tensor])
        if not is_inside:
            inputs = {self._giver(source): source for source in sources}
            self.node_of[id(tensor)] = node = self._new_node(made_outside_of_torch, tuple(inputs))
            self._append(node, inputs, value)
            self.trace.node_ops[-1].append(len(self.trace.ops) - 1)
        return value

    def _giver(self, value: int) -> Node:
        """The node that a value was made in, whatever it returned; that of an input is the input."""
        while (producer := self.trace.values[value].producer) >= 0:
            op = self.trace.ops[producer]
            if op.name != STALE_ALIAS:
                return self.trace.nodes[op.node]
            value = op.inputs[0]
        return self.inputs[value]

    def _look_up(self, tensors: Iterable[Tensor]) -> dict[Node, int]:
        """The nodes that gave some tensors, with the numbers these have now."""
        found = {}
        for tensor in tensors:
            value = self.lookup(tensor)
            self._place_inputs()
            self.node = len(self.trace.nodes)
            if id(tensor) not in self.node_of:
                self.node_of[id(tensor)] = self._giver(value)
            found[self.node_of[id(tensor)]] = value
        return found

    def _place_inputs(self) -> None:
        """Give each input that was met a node."""
        for tensor in self.unplaced:
            value = self.number_of[id(tensor)][0]
            node = self.graph.placeholder(self.paths.name_of(tensor) or "given")
            self.node_of[id(tensor)] = self.inputs[value] = node
            self._append(node, {}, value)
        self.unplaced.clear()

    def _new_node(self, target: Any, args: tuple[Any, ...]) -> Node:
        node = self.graph.call_function(target, args)
        node.meta["nn_module_stack"] = self.paths.stack
        if self.entry is not None:
            node.meta["stack_trace"] = lines_until(self.entry, target, _RUNS, _RECORDERS)
        return node

    def _append(self, node: Node, inputs: dict[Node, int], output: int | None = None) -> None:
        trace = self.trace
        trace.nodes.append(node)
        trace.node_inputs.append(inputs)
        trace.node_ops.append([])
        trace.node_output.append(output)
        trace.grad_enabled.append(self.grad_enabled and not torch.is_inference_mode_enabled())

    def _end_call(self, call: Call, result: Any) -> None:
        leaves = [leaf for leaf in tree_leaves(result) if is_plain_tensor(leaf)]
        args = [leaf for leaf in tree_leaves(call.args) if is_plain_tensor(leaf)]
        if call.target in _LEAVES_TORCH:
            self.left_torch.extend(map(self.lookup, args))
            self._place_inputs()
        if any(id(leaf) not in self.number_of and not any(leaf is one for one in args) for leaf in leaves):
            self.begin_operation()
            self.number_unseen(leaves, tuple(dict.fromkeys(self.trace.node_inputs[self.node].values())))
        self.inside = ()
        if call.first_op is None:
            return
        index = self.node
        node = self.trace.nodes[index]
        self.trace.node_ops[index].extend(range(call.first_op, len(self.trace.ops)))
        if is_plain_tensor(result):
            self.trace.node_output[index] = self.lookup(result)
            self.node_of[id(result)] = node
        else:
            for position, leaf in enumerate(leaves):
                part = self._new_node(operator.getitem, (node, position))
                self._append(part, {}, self.lookup(leaf))
                self.node_of[id(leaf)] = part
        self._place_inputs()


_RUNS = EagerRecorder.run_as_node.__code__


class _Functions(TorchFunctionMode):
    """Sees calls of torch functions."""

    def __init__(self, recorder: EagerRecorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is set_grad_enabled:
            # Autograd functions switch it off inside, past this: what counts is where they are called.
            self.recorder.grad_enabled = bool(args[0])
        result = self.recorder.run_as_node(func, args, kwargs or {})
        if func == _SETS_DATA:
            self.recorder.forget(id(args[0]))
        return result
