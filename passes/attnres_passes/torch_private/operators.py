"""Operators: what they are, and those that have no public name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeGuard, cast

import torch

set_grad_enabled = torch._C._set_grad_enabled
"""The call that switches the grad mode in a captured graph; public functions never become nodes."""


grouped_product = torch.ops.aten._grouped_mm
"""The operator of the products of a mixture of experts."""


_BEGINS = ("_enter_autocast", "_vmap_increment_nesting", "_grad_increment_nesting", "_enter_inference_mode")
_ENDS = ("_exit_autocast", "_vmap_decrement_nesting", "_grad_decrement_nesting", "_exit_inference_mode")


def begins_mode(node: torch.fx.Node) -> int:
    """1 if a node of a captured graph switches a mode on that a later one switches off, else 0."""
    if node.target is set_grad_enabled:
        return int(node.args[0] is False)
    return int(getattr(node.target, "__name__", "") in _BEGINS)


def ends_mode(node: torch.fx.Node) -> int:
    """1 if a node of a captured graph switches off what an earlier one has switched on, else 0."""
    if node.target is set_grad_enabled:
        return int(node.args[0] is True)
    return int(getattr(node.target, "__name__", "") in _ENDS)


def is_operator(target: Any) -> TypeGuard[torch._ops.OpOverload]:
    """Whether a target is one overload of an operator."""
    return isinstance(target, torch._ops.OpOverload)


def is_higher_order(target: Any) -> bool:
    """Whether a target is an operator that takes graphs, such as that of activation checkpointing."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def is_gradient_hook(target: Any) -> bool:
    """Whether a target of a captured graph registers a hook on the gradient of a tensor, or keeps that gradient."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name in ("register_hook", "register_post_accumulate_grad_hook", "retain_grad", "_register_hook_trampoline")


@lru_cache(maxsize=4096)
def is_composite(operator: Any) -> bool:
    """Whether an ATen operator is defined by other operators for autograd and all backends alike."""
    name = str(getattr(operator, "_name", ""))
    # Some operators, such as the size of a dynamic dimension, are unknown to the dispatcher.
    if not is_operator(operator) or not torch._C._dispatch_has_kernel(name):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def flop_formula(target: Any) -> Callable[..., Any] | None:
    """torch's formula for the FLOPs of an operator, called with shapes in place of tensors; None if it has none.

    Imports Triton, if it is there.
    """
    from torch.utils.flop_counter import flop_registry

    from attnres_kernels.operators.definition import register_flop_formulas

    register_flop_formulas()
    packet = target.overloadpacket if is_operator(target) else target
    found = flop_registry.get(packet)
    if found is None and str(packet).startswith("aten._scaled_dot_product") and "backward" not in str(packet):
        # The counter knows attention on GPUs only; the count is the same on a CPU.
        found = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
    return cast("Callable[..., Any] | None", found)


def copy_each(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy tensors in place, each into its own; on a GPU that is one kernel for small ones.

    Args:
        targets: what is written.
        sources: what is read, one for each target, of its shape.
    """
    torch._foreach_copy_(targets, sources)
