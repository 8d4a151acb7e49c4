"""Forwards with any number of tensors, in a form that Dynamo does not mistake for one without a context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def varying_arguments(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward(ctx, ..., *tensors)`` of a ``torch.autograd.Function`` under a signature that has no other names.

    Where no gradients are asked for, Dynamo leaves the context out if the call has as many arguments as the signature
    has names (torch 2.13, ``AutogradFunctionVariable.call_apply``), counting ``*tensors`` as one: with two tensors the
    first argument would be taken for the context. Behind this it is so for calls with two arguments in all, and there
    are none of them here. ``functools.wraps`` would show the old signature.

    Args:
        forward: with the context first.
    """

    def of_any_number(ctx: Any, *arguments: Any) -> Any:
        return forward(ctx, *arguments)

    return of_any_number
