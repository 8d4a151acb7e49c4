"""The compiler behind the backend: Inductor, AOTAutograd or none.

``compile_inner`` is called while Dynamo hands over a graph; ``compile_later`` while a call of the graph runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from attnres_passes.torch_private.borders.part_examples import Example
from attnres_passes.torch_private.example_values import example_value, fake_mode_of, is_fake, without_new_guards


def compile_inner(gm: torch.fx.GraphModule, inputs: list[Any], inner: str, mode: str | None) -> Callable[..., Any]:
    """Hand a graph to Inductor, to AOTAutograd without a compiler behind it, or to nothing.

    Args:
        gm: the graph.
        inputs: examples of its inputs, in order.
        inner: "inductor", "aot_eager" or "eager".
        mode: one of Inductor's modes; None for none.
    """
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

    patches = inductor_modes()[mode] if mode else None
    return cast(Callable[..., Any], compile_fx(gm, inputs, config_patches=patches))


def inductor_modes() -> dict[str, dict[str, Any]]:
    """What Inductor sets for each mode that it knows."""
    from torch._inductor import list_mode_options

    modes: dict[str, dict[str, Any]] = list_mode_options()
    return modes


def settings_token() -> Any:
    """Equal where compilers would do the same with the same graph: modes of the thread, and torch's own settings."""
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    state = torch._C._dynamo.guards.GlobalStateGuard().__getstate__()
    return state, torch.is_inference_mode_enabled(), inductor.get_hash(), functorch.get_hash()


def sizes_of(fake_mode: FakeTensorMode) -> Any:
    """What the symbols of sizes are of, in values of a fake mode; None if it has no symbols."""
    return fake_mode.shape_env


def traced_anew(anew: bool) -> contextlib.AbstractContextManager[Any]:
    """If ``anew``, graphs that torch knows from an earlier process are traced again.

    The key of AOTAutograd's cache holds the name of each operator that a graph calls, and not the kernels it launches:
    a graph whose launches are not tuned would be taken for one whose launches are. (Graphs of the backend are not in
    that cache, and the key of Inductor's own has the choices.)
    """
    if not anew:
        return contextlib.nullcontext()
    import torch._functorch.config as functorch

    return functorch.patch(enable_autograd_cache=False)  # type: ignore[no-any-return]


def compile_later(gm: GraphModule, inputs: list[Any], inner: str, mode: str | None) -> Callable[..., Any]:
    """``compile_inner`` of a copy of a captured graph, during a call of that graph.

    Sizes are dynamic where Dynamo found them to be: the values that it recorded for its placeholders stand for them,
    and its guards hold. Placeholders without such a value have the sizes of their input.

    Args:
        gm: the copy.
        inputs: those of the call.
        inner: "inductor", "aot_eager" or "eager".
        mode: one of Inductor's modes; None for none.
    """
    if inner == "eager":
        return compile_inner(gm, inputs, inner, mode)
    kept = [example_value(node) for node in gm.graph.nodes if node.op == "placeholder"]
    fake_mode = fake_mode_of(kept)
    examples = [_as_called(example, value, fake_mode) for example, value in zip(kept, inputs, strict=True)]
    with _tracing_under(fake_mode), without_new_guards(fake_mode):
        return compile_inner(gm, examples, inner, mode)


def compile_examples(
    gm: GraphModule, examples: Sequence[Example], fake_mode: FakeTensorMode, inner: str, mode: str | None
) -> Callable[..., Any]:
    """``compile_inner`` of a part of a graph, while Dynamo hands the graph over, whose guards are the part's.

    Args:
        gm: the part.
        examples: of its inputs, in order.
        fake_mode: of the values of the graph.
        inner: "inductor" or "aot_eager".
        mode: one of Inductor's modes; None for none.
    """
    with _tracing_under(fake_mode):
        with fake_mode:
            inputs = [example.fresh() for example in examples]
        return compile_inner(gm, inputs, inner, mode)


def _tracing_under(fake_mode: FakeTensorMode) -> contextlib.AbstractContextManager[Any]:
    """Have compilers take values of ``fake_mode`` for those of the graph, as they do while Dynamo calls them."""
    return torch._guards.tracing(torch._guards.TracingContext(fake_mode))


def _as_called(example: Any, value: Any, fake_mode: Any) -> Any:
    """The recorded value of a placeholder; a new one where tracing has changed it or Dynamo kept none."""
    if not isinstance(value, torch.Tensor):
        return value if example is None else example
    if not is_fake(example):
        return fake_mode.from_tensor(value, static_shapes=True)
    if example.requires_grad == value.requires_grad and example.is_leaf == value.is_leaf:
        return example
    with fake_mode:
        fresh = torch.empty_strided(
            example.shape, example.stride(), dtype=example.dtype, device=example.device
        ).requires_grad_(value.requires_grad)
        return fresh if value.is_leaf else fresh.view_as(fresh)
