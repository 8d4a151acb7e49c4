"""A captured graph as ATen operations on numbered values: what the analyses look at.

Dynamo's graph is at the level of torch functions: an addition may be ``operator.add``, ``torch.add``, ``iadd``,
``Tensor.add_``, and a norm may be one node or ten. Values are numbered, and a tensor changed in place gets a new
number: what a node reads is the number its argument had at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.fx import Node

from attnres_passes.torch_private.ranks.dtensors import Placed

OPAQUE = "opaque"
"""Target of an operation that dispatch could not see into: its outputs depend on its inputs in an unknown way."""

STALE_ALIAS = "stale_alias"
"""Target of the pseudo-operation that reads a tensor whose storage was changed through another tensor."""

LOCAL_PART = "local_part"
"""Target of the pseudo-operation that takes out of a DTensor what this rank holds of it."""

SPREAD = "spread"
"""Target of the pseudo-operation that makes a DTensor of what this rank holds of it."""


@dataclass(frozen=True)
class Ref:
    """In the recorded arguments of an operation, what stands for the tensor with this value number."""

    value: int


@dataclass(frozen=True)
class Value:
    """One tensor at one moment.

    shape: ints, and sympy expressions for dynamic sizes; producer: index of the operation, or -1 for an input of
    the graph; storage: which memory holds it; values of one storage share it; placed: how it is spread over ranks, if
    it is a DTensor, whose shape is that of the whole.
    """

    shape: tuple[Any, ...]
    dtype: torch.dtype
    producer: int
    storage: int
    placed: Placed | None = None

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
    grad_enabled[k]: whether the grad mode was on when node k began.
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

    @cached_property
    def _records_gradients(self) -> bool:
        return any(self.grad_enabled)

    def maker(self, value: int) -> Op | None:
        """The operation that made a value, None for an input; of a tensor that was changed through another, the change.

        The trace numbers such a tensor anew where it is next read, which may be anywhere.
        """
        producer = self.values[value].producer
        if producer >= 0 and self.ops[producer].name == STALE_ALIAS:
            producer = self.values[self.ops[producer].inputs[1]].producer
        return self.ops[producer] if producer >= 0 else None

    def cuts_gradients(self, node: int) -> bool:
        """Whether node ``node`` is under ``torch.no_grad`` in a graph whose grad mode is on elsewhere."""
        return self._records_gradients and not self.grad_enabled[node]
