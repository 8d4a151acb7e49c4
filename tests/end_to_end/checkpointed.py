"""Ways to checkpoint the layers of a model, and what a training step of it keeps and computes."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def every_second_product() -> Any:
    """Contexts of a policy that counts, as torchtitan's does."""
    asked = Counter[bool]()

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator not in PRODUCTS:
            return CheckpointPolicy.PREFER_RECOMPUTE
        asked[context.is_recompute] += 1
        return CheckpointPolicy.MUST_SAVE if asked[context.is_recompute] % 2 else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _around_forward(layers: Iterable[nn.Module], **options: Any) -> None:
    """Checkpoint the call of each layer, with the keywords that it is given."""
    for layer in layers:
        forward = layer.forward

        def run(*args: Any, forward: Callable[..., Any] = forward, **kwargs: Any) -> Any:
            return checkpoint(functools.partial(forward, **kwargs), *args, **options)

        layer.forward = run  # type: ignore[method-assign]


def _wrapped(model: nn.Module, layers: list[nn.Module], impl: CheckpointImpl) -> None:
    wrap = functools.partial(checkpoint_wrapper, checkpoint_impl=impl)
    apply_activation_checkpointing(model, checkpoint_wrapper_fn=wrap, check_fn=lambda module: module in layers)


WAYS: dict[str, Callable[[nn.Module, list[nn.Module]], None]] = {
    "non_reentrant": lambda model, layers: _around_forward(layers, use_reentrant=False),
    "reentrant": lambda model, layers: _around_forward(layers, use_reentrant=True),
    "every_second": lambda model, layers: _around_forward(layers[::2], use_reentrant=False),
    "selective": lambda model, layers: _around_forward(
        layers,
        use_reentrant=False,
        context_fn=functools.partial(create_selective_checkpoint_contexts, keep_products),
    ),
    "every_second_product": lambda model, layers: _around_forward(
        layers, use_reentrant=False, context_fn=every_second_product
    ),
    "no_early_stop": lambda model, layers: _around_forward(
        layers, use_reentrant=False, early_stop=False, preserve_rng_state=False
    ),
    "wrapper": lambda model, layers: _wrapped(model, layers, CheckpointImpl.NO_REENTRANT),
    "wrapper_reentrant": lambda model, layers: _wrapped(model, layers, CheckpointImpl.REENTRANT),
}
"""Name -> what checkpoints the layers of a model in place."""


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that run inside, those under a kept random state by their own names."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(args[1] if "rng_state" in str(func) else func)] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Step:
    """One training step. grads: by the names of the state dict; kept: for the backward, shape and bytes of each
    storage that is no parameter; recomputed: how often each operator ran in the backward.
    """

    loss: Tensor
    grads: dict[str, Tensor]
    kept: tuple[tuple[tuple[int, ...], int], ...]
    recomputed: Counter[str]

    @property
    def kept_bytes(self) -> int:
        return sum(size for _, size in self.kept)


def step(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> Step:
    """Forward and backward of a model."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[tuple[int, ...], int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept.setdefault(storage.data_ptr(), (tuple(tensor.shape), storage.nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    with OperatorCounter() as counter:
        loss.backward()
    grads = {
        name.replace("_checkpoint_wrapped_module.", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Step(loss.detach(), grads, tuple(kept.values()), counter.counts)
