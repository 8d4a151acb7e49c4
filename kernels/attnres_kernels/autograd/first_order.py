"""Backward passes that have no derivative of their own: who asks for one is told, and never given a wrong one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.errors import SecondDerivativeError


class _Refusal(torch.autograd.Function):
    """Gives a gradient on; its own backward is the error."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise SecondDerivativeError(
            "the gradients of depth attention in two phases, and of its kernels, cannot be differentiated again; "
            'compile the model with options={"schedule": "naive", "inner": "eager"} for second derivatives (gradient '
            "penalties, Hessian-vector products), and with ATTNRES_KERNELS=torch on a GPU."
        )


def first_order(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Let the second derivative of a function be an error.

    torch's ``once_differentiable`` does the same without saying what to change.

    Args:
        backward: of a ``torch.autograd.Function``.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        values = [x for x in (*grads, *ctx.saved_tensors) if isinstance(x, Tensor) and x.requires_grad]
        if not values:
            return results
        return tuple(_Refusal.apply(x, *values) if isinstance(x, Tensor) else x for x in results)  # type: ignore[no-untyped-call]

    return refusing
