"""The one place that touches private parts of torch; each function is covered by tests/passes/test_torch_compat.py.

(``_pytree`` and ``_python_dispatch`` of ``torch.utils`` are used elsewhere: they are how torch is extended.)

Checked with torch 2.11 and 2.13.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
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
    if not is_operator(operator):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(str(operator._name), "CompositeImplicitAutograd")


def storage_id(tensor: torch.Tensor) -> int:
    """The same for tensors that share memory, while one of them is alive."""
    return int(tensor.untyped_storage()._cdata)


def size_token(size: Any) -> Any:
    """A size as an int or a sympy expression: comparing those adds no guard, as comparing symbolic sizes would."""
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


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


def is_made_again(node: torch.fx.Node) -> bool:
    """Whether the backward makes the node's results again, by ``mark_for_recompute``."""
    return node.meta.get("recompute") is torch.utils.checkpoint.CheckpointPolicy.MUST_RECOMPUTE


def mark_as_added(placeholder: torch.fx.Node) -> None:
    """A placeholder that Dynamo knows nothing of, for a parameter.

    CUDA graphs take it to stay where it is, as they take the model's own parameters to: replaying does not copy it.
    """
    placeholder._dynamo_source = None
    placeholder.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}


@dataclass(frozen=True)
class FrameModule:
    """A module of the frame that is being compiled, and how Dynamo reaches it."""

    module: torch.nn.Module
    source: Any


def frame_modules(gm: torch.fx.GraphModule) -> list[FrameModule]:
    """The outermost modules that the parameters of a graph were reached through, while Dynamo calls the backend.

    Each placeholder's source is a chain such as ``L['self']._modules['h']._parameters['weight']``; its first link
    that is a module is what the user compiled, or what the compiled function calls.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    frame = InstructionTranslator.current_tx().output.root_tx
    scope = {"G": frame.f_globals, "L": frame.f_locals}
    found: dict[int, FrameModule] = {}
    bases: set[str] = set()
    for node in gm.graph.nodes:
        source = getattr(node, "_dynamo_source", None) if node.op == "placeholder" else None
        if source is None:
            continue
        for link in _links_from_base(source):
            name = link.name if isinstance(link.name, str) else link.name()
            if name in bases:
                break
            value = _evaluated(name, scope)
            if isinstance(value, torch.nn.Module):
                bases.add(name)
                found.setdefault(id(value), FrameModule(value, link))
                break
    return list(found.values())


def guard_identity(module: FrameModule) -> None:
    """Make the graph being compiled valid for this very module only.

    Dynamo reuses a graph for another module of the same structure, with that one's parameters as inputs; it cannot
    know of parameters that a backend adds.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard

    install_guard(module.source.make_guard(GuardBuilder.ID_MATCH))


def _links_from_base(source: Any) -> list[Any]:
    links = [source]
    while getattr(links[-1], "base", None) is not None:
        links.append(links[-1].base)
    return links[::-1]


def _evaluated(name: str, scope: dict[str, Any]) -> Any:
    """The value of a source by its name, as guards evaluate it; None for links that only guards can evaluate."""
    try:
        return eval(name, scope)
    except (NameError, KeyError, AttributeError, IndexError, TypeError, SyntaxError):
        return None


@dataclass(frozen=True)
class GraphEnd:
    """Where a graph stands in its frame.

    is_break: whether the frame goes on after it, in another graph; reason and source: of that break.
    """

    is_break: bool
    reason: str = ""
    source: str = ""


def graph_end() -> GraphEnd:
    """Why the graph that Dynamo is handing to the backend ends where it does."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    reason: Any = InstructionTranslator.current_tx().output.compile_subgraph_reason
    if reason is None:
        return GraphEnd(False)
    last = reason.user_stack[-1] if reason.user_stack else None
    source = f"{last.filename}:{last.lineno}" if last is not None else ""
    first_line = str(reason.reason).strip().splitlines()[0] if str(reason.reason).strip() else ""
    return GraphEnd(bool(reason.graph_break), first_line, source)


def uncompiled_caller(module: torch.nn.Module) -> str:
    """``file:line`` of the forward of a module around ``module`` that runs uncompiled now; '' if there is none.

    A graph break in a loop makes Dynamo leave the whole frame to Python and compile what it calls piece by piece.
    """
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        caller = frame.f_locals.get("self")
        if (
            not isinstance(caller, torch.nn.Module)
            or caller is module
            or frame.f_code.co_filename.startswith(TORCH_FOLDER)
        ):
            continue
        if any(part is module for part in caller.modules()):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ""


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

    import attnres_kernels.depth_attention.flops  # noqa: F401  (formulas of our own operators)

    packet = target.overloadpacket if is_operator(target) else target
    found = flop_registry.get(packet)
    if found is None and str(packet).startswith("aten._scaled_dot_product") and "backward" not in str(packet):
        # The counter knows attention on GPUs only; the count is the same on a CPU.
        found = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
    return cast("Callable[..., Any] | None", found)
