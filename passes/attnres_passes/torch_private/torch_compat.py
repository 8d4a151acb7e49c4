"""The place that touches private parts of torch, with ``torch_frames`` for the frames that Dynamo is in and
``torch_collectives`` for process groups; each function is covered by tests/passes/torch_private/test_torch_compat.py.

(``_pytree`` and ``_python_dispatch`` of ``torch.utils`` are used elsewhere: they are how torch is extended.)

Checked with torch 2.11 and 2.13.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import torch
import torch._logging
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

TORCH_FOLDER = f"{Path(torch.__file__).parent}{os.sep}"
"""What the paths of torch's own files begin with."""

set_grad_enabled = torch._C._set_grad_enabled
"""The call that switches the grad mode in a captured graph; public functions are no nodes."""

grouped_product = torch.ops.aten._grouped_mm
"""The operator of the products of a mixture of experts."""

OLDEST_TORCH = (2, 11)
NEWEST_TORCH = (2, 13)


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


@lru_cache(maxsize=1)
def warn_if_untested() -> None:
    """Warn, once, under a torch that this file was not checked with."""
    if not OLDEST_TORCH <= torch_version() <= NEWEST_TORCH:
        oldest, newest = (".".join(map(str, version)) for version in (OLDEST_TORCH, NEWEST_TORCH))
        warnings.warn(
            f"attnres: torch {torch.__version__} is untested, {oldest} to {newest} are; check your model with "
            "attnres_compile.verify.",
            stacklevel=3,
        )


def fake_mode_of(values: list[Any]) -> FakeTensorMode:
    """The fake mode that the example values of a captured graph belong to, or a new one.

    The tracing context is no guide: while Dynamo calls a backend, it holds a mode newer than the graph's values.
    """
    for value in tree_leaves(values):
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def without_new_guards(fake_mode: FakeTensorMode) -> Iterator[None]:
    """Run fake tensors of ``fake_mode`` without adding guards or unbacked symbols to the graph being compiled."""
    shape_env = fake_mode.shape_env
    if shape_env is None:
        yield
        return
    with shape_env.suppress_guards(), shape_env.ignore_fresh_unbacked_symbols():
        yield


def without_modes() -> contextlib.AbstractContextManager[Any]:
    """Run torch with none of the dispatch modes that are active around the caller, such as a fake mode."""
    return torch.utils._python_dispatch._disable_current_modes()


@contextlib.contextmanager
def restored_torch_state() -> Iterator[None]:
    """Put the random state, grad mode and autocast state back after running a captured graph.

    A captured graph may hold nodes that switch them.
    """
    grad = torch.is_grad_enabled()
    devices = ("cpu", "cuda")
    autocast = [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_grad_enabled(grad)
        for device, enabled, dtype in autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


def is_operator(target: Any) -> TypeGuard[torch._ops.OpOverload]:
    """Whether a target is one overload of an operator."""
    return isinstance(target, torch._ops.OpOverload)


def is_higher_order(target: Any) -> bool:
    """Whether a target is an operator that takes graphs, such as that of activation checkpointing."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def is_fake(value: Any) -> bool:
    """Whether a value is a tensor without data."""
    return isinstance(value, FakeTensor)


def is_plain_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """A tensor that is not a wrapper of a functorch level (those cannot be inspected from outside the level)."""
    return isinstance(value, torch.Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


@lru_cache(maxsize=4096)
def is_composite(operator: Any) -> bool:
    """Whether an ATen operator is defined by other operators for autograd and all backends alike."""
    name = str(getattr(operator, "_name", ""))
    # Some operators, such as the size of a dynamic dimension, are unknown to the dispatcher.
    if not is_operator(operator) or not torch._C._dispatch_has_kernel(name):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def storage_id(tensor: torch.Tensor) -> int:
    """The same for tensors that share memory, while one of them is alive."""
    return int(tensor.untyped_storage()._cdata)


def size_token(size: Any) -> Any:
    """A size as an int or a sympy expression: comparing those adds no guard, as comparing symbolic sizes would."""
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def size_hint(size: Any) -> int | None:
    """A size as it is in this call, without a guard on it; None where that is not known before the call."""
    return size.node.hint if isinstance(size, torch.SymInt) else int(size)


def example_value(node: torch.fx.Node) -> Any:
    """The fake value that Dynamo recorded for a node; None where it recorded none."""
    return node.meta.get("example_value", node.meta.get("val"))


_DYNAMO_MODULE_ATTRIBUTES = ("_param_name_to_source", "_source_to_user_stacks")


def copy_dynamo_attributes(old: torch.fx.GraphModule, new: torch.fx.GraphModule) -> None:
    """Give a copy of a captured graph what compilers look up on the module that Dynamo made."""
    new.meta.update(old.meta)
    for name in _DYNAMO_MODULE_ATTRIBUTES:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))


def copy_dynamo_source(old: torch.fx.Node, new: torch.fx.Node) -> None:
    """Placeholders carry the source of their value as an attribute, which copying a node leaves behind."""
    if old.op == "placeholder" and hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source


def copied(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a captured or rewritten graph, on the same parameters."""
    graph = torch.fx.Graph()
    env: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in gm.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
        copy_dynamo_source(node, env[node])
    new = torch.fx.GraphModule(gm, graph)
    copy_dynamo_attributes(gm, new)
    return new


def mark_for_recompute(node: torch.fx.Node) -> None:
    """Have the partitioner of forward and backward make the node's results again in the backward, not keep them."""
    node.meta["recompute"] = torch.utils.checkpoint.CheckpointPolicy.MUST_RECOMPUTE
    node.meta["ac_graph_id"] = 0


def mark_as_unknown(placeholder: torch.fx.Node) -> None:
    """A placeholder that Dynamo knows nothing of."""
    placeholder._dynamo_source = None


def is_made_again(node: torch.fx.Node) -> bool:
    """Whether the backward makes the node's results again, by ``mark_for_recompute``."""
    return node.meta.get("recompute") is torch.utils.checkpoint.CheckpointPolicy.MUST_RECOMPUTE


def mark_as_added(placeholder: torch.fx.Node) -> None:
    """A placeholder that Dynamo knows nothing of, for a parameter.

    CUDA graphs take it to stay where it is, as they take the model's own parameters to: replaying does not copy it.
    """
    mark_as_unknown(placeholder)
    placeholder.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}


def copy_each(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its target in place; on a GPU that is one kernel for small tensors."""
    torch._foreach_copy_(targets, sources)


@contextlib.contextmanager
def without_recorded_shapes() -> Iterator[None]:
    """Keep a capture out of Dynamo's memory of sizes, which decides what the next compilation makes dynamic."""
    from torch._dynamo import pgo

    pgo.get_code_state()
    saved = copy.deepcopy(pgo._CODE_STATE)
    try:
        yield
    finally:
        pgo._CODE_STATE = saved


def trace_artifact(name: str, encoding: Literal["string", "json"], text: Callable[[], str]) -> None:
    """Add a text to torch's structured trace (``TORCH_TRACE``), which tlparse shows; it is made only when traced."""
    _trace("artifact", {"name": name, "encoding": encoding}, text)


def trace_graph(name: str, text: Callable[[], str]) -> None:
    """Add the text of a graph to torch's structured trace."""
    _trace("graph_dump", {"name": name}, text)


def _trace(event: str, metadata: dict[str, str], text: Callable[[], str]) -> None:
    trace_structured = getattr(torch._logging, "trace_structured", None)
    if trace_structured is not None:
        trace_structured(event, metadata_fn=lambda: metadata, payload_fn=text)


def as_backend_failure(error: Exception) -> Exception:
    """An error that is both ``error``'s class and torch's BackendCompilerFailed.

    Dynamo wraps whatever a backend raises, unless it is of this family.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    class Failure(type(error), BackendCompilerFailed):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__.update(error.__dict__)
            self.args = error.args
            self.backend_name, self.inner_exception, self.first_useful_frame = "attnres", error, None

    Failure.__name__, Failure.__qualname__ = type(error).__name__, type(error).__qualname__
    Failure.__module__ = type(error).__module__
    return Failure()


def compile_inner(gm: torch.fx.GraphModule, inputs: list[Any], inner: str, mode: str | None) -> Callable[..., Any]:
    """Hand a graph to Inductor, to AOTAutograd without a compiler behind it, or to nothing."""
    if inner == "eager":
        return gm.forward
    if inner == "aot_eager":
        from functorch.compile import min_cut_rematerialization_partition  # type: ignore[import-untyped]
        from torch._dynamo.backends.common import aot_autograd
        from torch._dynamo.backends.debugging import boxed_nop

        compiler = aot_autograd(
            fw_compiler=boxed_nop,
            partition_fn=min_cut_rematerialization_partition,
            keep_inference_input_mutations=True,
        )
        compiled: Callable[..., Any] = compiler(gm, inputs)
        return compiled
    from torch._inductor.compile_fx import compile_fx

    patches = inductor_mode_options(mode) if mode else None
    return cast(Callable[..., Any], compile_fx(gm, inputs, config_patches=patches))


def traced_anew(anew: bool) -> contextlib.AbstractContextManager[Any]:
    """If ``anew``, graphs that torch knows from an earlier process are traced again.

    Of an operator that a graph calls, the key of AOTAutograd's cache holds the name and not which kernels it launches:
    a graph whose launches are not tuned would be taken for one whose are. (Graphs of the backend are not in that cache,
    and the key of Inductor's own has the choices.)
    """
    if not anew:
        return contextlib.nullcontext()
    import torch._functorch.config as functorch

    return functorch.patch(enable_autograd_cache=False)  # type: ignore[no-any-return]


def tracing_under(fake_mode: FakeTensorMode) -> contextlib.AbstractContextManager[Any]:
    """Have compilers take values of ``fake_mode`` for those of the graph that they compile, as while Dynamo calls."""
    return torch._guards.tracing(torch._guards.TracingContext(fake_mode))


def in_backward() -> bool:
    """Whether autograd is running a backward pass around the caller: activation checkpointing recomputes there."""
    return bool(torch._C._current_graph_task_id() != -1)


def inductor_modes() -> tuple[str, ...]:
    """Names of the modes that Inductor knows."""
    from torch._inductor import list_mode_options

    return tuple(list_mode_options())


def inductor_mode_options(mode: str) -> dict[str, Any]:
    """What Inductor sets for a mode."""
    from torch._inductor import list_mode_options

    options: dict[str, Any] = list_mode_options(mode)
    return options


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
