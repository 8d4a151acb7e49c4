"""What torch is doing around the caller: modes, random state, a backward pass, checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def without_modes() -> contextlib.AbstractContextManager[Any]:
    """Run torch with none of the dispatch modes that are active around the caller, such as a fake mode."""
    return torch.utils._python_dispatch._disable_current_modes()


@contextlib.contextmanager
def restored_torch_state() -> Iterator[None]:
    """Put the random state, grad mode, autocast state and the ban on hooks back after running a captured graph.

    A captured graph may hold nodes that switch them; torch.func bans hooks on saved tensors inside its transforms.
    """
    grad = torch.is_grad_enabled()
    devices = ("cpu", "cuda")
    ban = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    autocast = [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_grad_enabled(grad)
        if ban is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(ban)
        for device, enabled, dtype in autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


def in_backward() -> bool:
    """Whether autograd is running a backward pass around the caller: activation checkpointing recomputes there."""
    return bool(torch._C._current_graph_task_id() != -1)


def unseen_by_checkpoints() -> contextlib.AbstractContextManager[Any]:
    """Compile or analyse inside a forward pass under activation checkpointing, which counts the tensors it saves."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        # Nothing sees them, and a graph with a transform of torch.func in it, which bans hooks, can be executed.
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
