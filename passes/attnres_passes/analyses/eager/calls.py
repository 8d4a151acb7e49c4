"""Calls that become nodes of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


def made_outside_of_torch(*values: Tensor) -> Any:
    """Stands in a trace for Python code that takes values out of torch and brings a tensor back. Never called."""
    raise NotImplementedError


@dataclass
class Call:
    """A call of a function that may become a node. first_op: of the node, once it has begun."""

    target: Any
    args: Any
    first_op: int | None = None
