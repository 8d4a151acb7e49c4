"""Analysis: the ATen operations of a model that Python runs, whatever graphs a compiler would make of it.

A node of the trace is a call of a torch function, as in a graph of Dynamo's, so that the same analyses serve both:
what runs is seen twice, by a mode for torch functions, which begins and ends nodes, and by the recorder for the ATen
operations inside them. Python itself is executed: loops, prints and what depends on data leave no nodes.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attnres_passes.analyses import aten_recorder
from attnres_passes.analyses.aten_recorder import Recorder, keep_live
from attnres_passes.analyses.aten_trace import OPAQUE, AtenTrace, Ref
from attnres_passes.torch_private.captures.python_calls import lines_until, watched_calls
from attnres_passes.torch_private.example_values import is_plain_tensor, storage_id
from attnres_passes.torch_private.operators import set_grad_enabled
from attnres_passes.torch_private.state import restored_torch_state

_RECORDERS = frozenset({__file__, aten_recorder.__file__})
_LEAVES_TORCH = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__})


def trace_run(
    model: nn.Module, run: Callable[[], Any], given: Iterable[Any], results: Callable[[Any], Iterable[Tensor]]
) -> AtenTrace:
    """Run Python code and note what a model in it does.

    Args:
        model: whose modules name the nodes.
        run: calls it.
        given: what the code is given besides the model; tensors in it were not made by it.
        results: tensors that the run leaves behind, made of what ``run`` returns.
    """
    recorder = EagerRecorder(model, given)
    with restored_torch_state(), recorder.recording():
        result = run()
    recorder.end(results(result))
    return recorder.trace


@dataclass
class _Call:
    """A call of a function that may become a node. first_op: of the node, once it has begun."""

    target: Any
    args: Any
    first_op: int | None = None


class EagerRecorder(Recorder):  # type: ignore[no-untyped-call]
    """Adds a node to the trace for each outermost call of a torch function that makes or changes a tensor."""

    def __init__(self, model: nn.Module, given: Iterable[Any]) -> None:
        super().__init__(AtenTrace([]))
        self.graph = Graph()
        self.paths = _ModulePaths(model)
        self.grad_enabled = torch.is_grad_enabled()
        self.call: _Call | None = None
        self.entry: FrameType | None = None
        # By identity of a tensor: the node that last gave it.
        self.node_of: dict[int, Node] = {}
        self.unplaced: list[Tensor] = []
        self.given = {storage_id(one) for one in given if is_plain_tensor(one)}
        self.made_in: dict[int, int] = {}
        self.left_torch: list[int] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs meanwhile."""
        self.entry = sys._getframe(2)
        with self, _Functions(self), watched_calls(self.paths.inside, self.run_as_node):
            yield

    def end(self, results: Iterable[Tensor]) -> None:
        """Note what the run leaves behind, and complete the trace."""
        outputs = [one for one in results if is_plain_tensor(one)]
        self.node = len(self.trace.nodes)
        inputs = self._look_up(outputs)
        self.trace.graph_outputs = tuple(self.lookup(one) for one in outputs)
        node = self.graph.output(tuple(self.node_of[id(one)] for one in outputs))
        self._append(node, inputs)
        keep_live(self.trace)

    def run_as_node(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a function; what it does is one node, unless it is a part of one."""
        if self.call is not None:
            return function(*args, **kwargs)
        self.call = call = _Call(function, (args, kwargs))
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
        self.call = call = _Call(func, (args, kwargs))
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
        inputs = self._look_up(leaf for leaf in tree_leaves(self.call.args) if is_plain_tensor(leaf))
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
            inputs = tuple(dict.fromkeys(sources))
            return self.append(OPAQUE, tuple(map(Ref, inputs)), {}, inputs, [tensor])[0]
        value = self.number(tensor, producer=-1)
        self.unplaced.append(tensor)
        return value

    def number(self, tensor: Tensor, producer: int) -> int:
        value = super().number(tensor, producer)
        if producer >= 0:
            self.made_in[storage_id(tensor)] = value
        return value

    def _look_up(self, tensors: Iterable[Tensor]) -> dict[Node, int]:
        """The nodes that gave some tensors, with the numbers these have now."""
        found = {}
        for tensor in tensors:
            value = self.lookup(tensor)
            self._place_inputs()
            self.node = len(self.trace.nodes)
            if id(tensor) not in self.node_of:
                # Made inside another node, which did not return it.
                self.node_of[id(tensor)] = self.trace.nodes[self.trace.ops[self.trace.values[value].producer].node]
            found[self.node_of[id(tensor)]] = value
        return found

    def _place_inputs(self) -> None:
        """Give each input that was met a node."""
        for tensor in self.unplaced:
            value = self.number_of[id(tensor)][0]
            node = self.graph.placeholder(self.paths.name_of(tensor) or "given")
            self.node_of[id(tensor)] = node
            self._append(node, {}, value)
        self.unplaced.clear()

    def _new_node(self, target: Any, args: tuple[Any, ...]) -> Node:
        node = self.graph.call_function(target, args)
        node.meta["nn_module_stack"] = self.paths.stack
        assert self.entry is not None
        node.meta["stack_trace"] = lines_until(self.entry, target, _RECORDERS)
        return node

    def _append(self, node: Node, inputs: dict[Node, int], output: int | None = None) -> None:
        trace = self.trace
        trace.nodes.append(node)
        trace.node_inputs.append(inputs)
        trace.node_ops.append([])
        trace.node_output.append(output)
        trace.grad_enabled.append(self.grad_enabled and not torch.is_inference_mode_enabled())

    def _end_call(self, call: _Call, result: Any) -> None:
        leaves = [leaf for leaf in tree_leaves(result) if is_plain_tensor(leaf)]
        if call.target in _LEAVES_TORCH:
            self.left_torch.extend(self.lookup(leaf) for leaf in tree_leaves(call.args) if is_plain_tensor(leaf))
        if any(id(leaf) not in self.number_of for leaf in leaves):
            self.begin_operation()
            index = len(self.trace.nodes) - 1
            self.number_unseen(leaves, tuple(dict.fromkeys(self.trace.node_inputs[index].values())))
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
        return self.recorder.run_as_node(func, args, kwargs or {})


class _ModulePaths:
    """The modules that are being called, by their paths in the model.

    stack: as Dynamo notes it at nodes, from the model inwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack: dict[str, tuple[str, type[nn.Module]]] = {}
        self.calls: list[tuple[nn.Module, str]] = []
        self.paths_in: dict[int, dict[int, str]] = {}
        self.names = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}

    def name_of(self, tensor: Tensor) -> str:
        """The name of a parameter or buffer; '' for any other tensor."""
        return self.names.get(id(tensor), "").replace(".", "_")

    @contextlib.contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """Be in a call of a module. One that is no part of the model leaves no trace of itself."""
        path = self._path(module)
        if path is None:
            yield
            return
        before = self.stack
        # Nodes keep the stack that they were made under, so that it is not changed.
        self.stack = {**before, f"{len(before)}:{path}": (path, type(module))}
        self.calls.append((module, path))
        try:
            yield
        finally:
            self.stack = before
            self.calls.pop()

    def _path(self, module: nn.Module) -> str | None:
        """By the innermost module that is being called and holds it, as it is reached from there."""
        for caller, path in reversed(self.calls):
            inner = self._paths_in(caller).get(id(module))
            if inner is not None:
                return ".".join(part for part in (path, inner) if part)
        return self._paths_in(self.model).get(id(module))

    def _paths_in(self, module: nn.Module) -> dict[int, str]:
        if id(module) not in self.paths_in:
            self.paths_in[id(module)] = {id(one): name for name, one in module.named_modules()}
        return self.paths_in[id(module)]
