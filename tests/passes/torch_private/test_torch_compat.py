"""What the private parts of torch are used for: each test fails when torch changes the part behind it."""

from __future__ import annotations

import ast
import contextlib
import operator
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from attnres_kernels.errors import AttnResError
from attnres_passes.torch_private import torch_compat
from tests.passes.helpers import (
    WIDTH,
    Backend,
    Function,
    Part,
    captured,
    double,
    placeholders,
    sample,
    seen_by,
)
from tests.passes.rewrite.test_rewrite import tiny
from tests.passes.rewrite.test_rewrite_values import checkpointed, stack

ROOT = Path(__file__).resolve().parents[3]
VISION = str(Path(torch.__file__).parent.with_name("torchvision") / "model.py")


@pytest.mark.parametrize(
    ("text", "version", "tested"),
    [
        ("2.10.9", (2, 10), False),
        ("2.11.0", (2, 11), True),
        ("2.13.1+cu128", (2, 13), True),
        ("2.14.0a0+git1234567", (2, 14), False),
        ("3.0.0.dev20300101", (3, 0), False),
    ],
)
def test_untested_torch_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, text: str, version: tuple[int, int], tested: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", text)
    torch_compat.warn_if_untested.cache_clear()
    assert torch_compat.torch_version() == version
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch_compat.warn_if_untested()
        torch_compat.warn_if_untested()
    said = [str(warning.message) for warning in caught]
    assert len(said) == (0 if tested else 1)
    assert all(f"torch {text} is untested, 2.11 to 2.13 are; " in message for message in said)


def test_fake_mode_is_that_of_the_values_or_a_new_one() -> None:
    mode = FakeTensorMode()
    fake = mode.from_tensor(sample())
    assert torch_compat.fake_mode_of([3, sample(), {"nested": (None, [fake])}]) is mode
    assert torch_compat.fake_mode_of([nn.Parameter(fake)]) is mode
    with torch_compat.fake_mode_of([real := sample(2, 3), 3]):
        assert (real @ torch.ones(3, 4, dtype=real.dtype)).shape == (2, 4)


def graphs_after_looking_at_the_size(look: Callable[[Any], Any], suppressed: bool) -> int:
    """How many graphs lengths of 5 and 50 take if the backend looks at the length as a symbol."""

    def peek(gm: GraphModule) -> None:
        values = [torch_compat.example_value(node) for node in placeholders(gm)]
        (size,) = [value.shape[0] for value in values if isinstance(value, Tensor)]
        assert isinstance(size, torch.SymInt)
        mode = torch_compat.fake_mode_of(values)
        if suppressed:
            with torch_compat.without_new_guards(mode):
                look(size)
        else:
            look(size)

    backend = Backend(peek)
    compiled = torch.compile(lambda x: 2 * x, backend=backend, dynamic=True)
    for length in (5, 50):
        compiled(sample(length, WIDTH))
    return len(backend.seen)


@pytest.mark.parametrize("look", [lambda size: bool(size > 9), lambda size: bool(size == 5), int])
def test_looking_at_a_size_adds_no_guard(look: Callable[[Any], Any]) -> None:
    assert graphs_after_looking_at_the_size(look, suppressed=False) == 2
    torch._dynamo.reset()
    assert graphs_after_looking_at_the_size(look, suppressed=True) == 1


def test_size_token_can_be_compared_without_a_guard() -> None:
    def look(size: Any) -> None:
        assert torch_compat.size_token(size) != 5
        assert torch_compat.size_token(size) == torch_compat.size_token(size)
        assert torch_compat.size_token(2 * size) != torch_compat.size_token(size)
        assert hash(torch_compat.size_token(2 * size)) == hash(torch_compat.size_token(size + size))

    assert graphs_after_looking_at_the_size(look, suppressed=False) == 1
    assert torch_compat.size_token(sample(5).shape[0]) == 5


def test_size_hint_is_the_size_of_the_call_without_a_guard() -> None:
    hints: list[int | None] = []

    def look(size: Any) -> None:
        hints.append(torch_compat.size_hint(2 * size))

    assert graphs_after_looking_at_the_size(look, suppressed=False) == 1
    assert hints == [10]
    assert torch_compat.size_hint(5) == 5


def test_size_that_data_decides_has_no_hint() -> None:
    with FakeTensorMode(shape_env=ShapeEnv()):
        (places,) = torch.nonzero(torch.zeros(3), as_tuple=True)
    assert torch_compat.size_hint(places.shape[0]) is None


def test_sizes_that_depend_on_data_are_forgotten() -> None:
    env = ShapeEnv(allow_dynamic_output_shape_ops=True)
    mode = FakeTensorMode(shape_env=env)
    with mode:
        (torch.ones(5) > 0).nonzero()
        pending = len(env.pending_fresh_unbacked_symbols)
        with torch_compat.without_new_guards(mode):
            (torch.ones(6) > 0).nonzero()
        assert len(env.pending_fresh_unbacked_symbols) == pending
        (torch.ones(7) > 0).nonzero()
        assert len(env.pending_fresh_unbacked_symbols) == pending + 1


def test_random_state_and_grad_mode_are_put_back() -> None:
    state = torch.get_rng_state()

    def change_and_fail() -> None:
        torch.rand(3)
        torch.set_grad_enabled(False)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), torch_compat.restored_torch_state():
        change_and_fail()
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_is_put_back() -> None:
    with contextlib.ExitStack() as left_open:
        with torch_compat.restored_torch_state():
            left_open.enter_context(torch.autocast("cpu", torch.bfloat16))
        assert not torch.is_autocast_enabled("cpu")


def test_composite_operators() -> None:
    aten = torch.ops.aten
    for composite in (aten.matmul.default, aten.layer_norm.default, aten.dropout.default):
        assert torch_compat.is_composite(composite)
    for other in (aten.mm.default, aten.add.Tensor, aten.size.default, torch.add, operator.add, "sinh"):
        assert not torch_compat.is_composite(other)


def test_example_value_is_what_dynamo_or_autograd_recorded() -> None:
    shapes = [torch_compat.example_value(node).shape for node in placeholders(captured(tiny).gm)]
    assert shapes[:3] == [(2, 3, WIDTH), (WIDTH,), (WIDTH,)]
    traced = make_fx(torch.sin, tracing_mode="fake")(sample())
    assert torch_compat.example_value(placeholders(traced)[0]).shape == (2, 3, WIDTH)
    untraced = torch.fx.symbolic_trace(nn.Identity())
    assert torch_compat.example_value(placeholders(untraced)[0]) is None


def test_copy_has_the_nodes_attributes_and_parameters_of_the_original() -> None:
    gm = captured(stack(checkpointed)).gm
    copy = torch_compat.copied(gm)
    assert copy.code == gm.code
    assert copy.meta == gm.meta
    assert copy._param_name_to_source is gm._param_name_to_source
    assert [node.meta for node in copy.graph.nodes] == [node.meta for node in gm.graph.nodes]
    assert [node._dynamo_source for node in placeholders(copy)] == [node._dynamo_source for node in placeholders(gm)]
    assert None not in [node._dynamo_source for node in placeholders(copy)]
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    assert next(torch_compat.copied(model).parameters()) is next(model.parameters())


def test_change_of_a_copy_leaves_the_original_as_it_was() -> None:
    gm = captured(tiny).gm
    before, metadata = gm.code, [dict(node.meta) for node in gm.graph.nodes]
    copy = torch_compat.copied(gm)
    *_, norm, last = copy.graph.nodes
    last.args = (norm.args[0],)
    norm.meta["mark"] = copy.meta["mark"] = True
    copy.recompile()
    assert gm.code == before
    assert [node.meta for node in gm.graph.nodes] == metadata
    assert "mark" not in gm.meta


def test_autograd_takes_a_copy_with_an_added_placeholder() -> None:
    """AOTAutograd asks every placeholder for its source, and the module for the names of its parameters."""
    extra = sample(WIDTH)

    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        copy = torch_compat.copied(gm)
        *_, last = copy.graph.nodes
        with copy.graph.inserting_after(placeholders(copy)[-1]):
            added = copy.graph.placeholder("added")
        torch_compat.mark_as_added(added)
        with copy.graph.inserting_before(last):
            total = copy.graph.call_function(torch.add, (last.args[0][0], added))
        last.args = ((total,),)
        copy.recompile()
        compiled = torch_compat.compile_inner(copy, [*inputs, extra], "aot_eager", None)
        return lambda *args: compiled(*args, extra)

    model = Function(tiny)
    torch.testing.assert_close(torch.compile(model, backend=backend)(sample()), model(sample()) + extra)


class LateError(AttnResError, ValueError):
    def __init__(self, declined: int) -> None:
        self.declined = declined
        super().__init__(f"{declined} declined\nDo this.")


@pytest.mark.parametrize("expected", [LateError, AttnResError, ValueError, BackendCompilerFailed])
def test_error_reaches_the_user_as_its_class_and_as_torchs(expected: type[Exception]) -> None:
    error = LateError(3)

    def look(gm: GraphModule) -> None:
        raise torch_compat.as_backend_failure(error)

    assert str(torch_compat.as_backend_failure(error)) == str(error)
    with pytest.raises(expected) as caught:
        seen_by(look, double, sample())
    failure: Any = caught.value
    assert str(failure).startswith(str(error))  # Dynamo adds a hint of its own
    assert (failure.declined, failure.inner_exception) == (3, error)
    assert (type(failure).__name__, type(failure).__module__) == ("LateError", __name__)


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_every_inner_compiler_gives_the_same(inner: str) -> None:
    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return torch_compat.compile_inner(gm, inputs, inner, None)

    model, x = Part(), sample().requires_grad_()
    actual, expected = torch.compile(model, backend=backend)(x), model(x)
    torch.testing.assert_close(actual, expected)
    weights = [x, *model.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(actual.sin().sum(), weights), torch.autograd.grad(expected.sin().sum(), weights)
    )


@pytest.mark.parametrize(
    ("mode", "patches"), [(None, None), ("default", {}), ("reduce-overhead", {"triton.cudagraphs": True})]
)
def test_mode_reaches_inductor(monkeypatch: pytest.MonkeyPatch, mode: str | None, patches: Any) -> None:
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda gm, inputs, config_patches: config_patches)
    assert torch_compat.compile_inner(captured(tiny).gm, [], "inductor", mode) == patches


def test_modes_of_inductor() -> None:
    modes = torch_compat.inductor_modes()
    assert {"default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"} <= set(modes)
    assert torch_compat.inductor_mode_options("max-autotune-no-cudagraphs")["max_autotune"] is True
    options = {name for mode in modes for name in torch_compat.inductor_mode_options(mode)}
    assert options <= set(torch._inductor.config.get_config_copy())


def test_without_modes_nothing_is_fake() -> None:
    with FakeTensorMode():
        assert torch_compat.is_fake(torch.ones(2))
        with torch_compat.without_modes():
            assert not torch_compat.is_fake(torch.ones(2))


KNOWN = {
    "torch.utils._pytree",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_map_only",
    "torch.utils._python_dispatch.TorchDispatchMode",
}


def private_names(path: Path) -> set[str]:
    """Full names of what the file imports or reads of `torch`, with a private part in them."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute) and id(node) not in inner}
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if re.match(r"functorch\b|torch\.(\w+\.)*_[a-zA-Z]", name)}


def test_each_tensor_is_copied_into_its_own() -> None:
    targets, sources = [torch.zeros(()), torch.zeros(2, 3)], [torch.tensor(4.0), sample(2, 3).to(torch.float32)]
    places = [target.data_ptr() for target in targets]
    torch_compat.copy_each(targets, sources)
    assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))
    assert [target.data_ptr() for target in targets] == places


def test_no_other_file_uses_more_private_parts_of_torch() -> None:
    folders = ("attnres_compile", "passes", "kernels")
    used = {path.name: private_names(path) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert "torch._inductor.compile_fx.compile_fx" in used.pop("torch_compat.py")
    assert "torch._dynamo.guards.install_guard" in used.pop("torch_frames.py")
    assert "torch.ops._c10d_functional" in used.pop("torch_collectives.py")
    assert not {name: names - KNOWN for name, names in used.items() if names - KNOWN}


def test_what_is_traced_anew_is_not_taken_from_the_cache() -> None:
    import torch._functorch.config as functorch

    before = functorch.enable_autograd_cache
    with torch_compat.traced_anew(True):
        assert not functorch.enable_autograd_cache
    assert functorch.enable_autograd_cache == before
    with torch_compat.traced_anew(False):
        assert functorch.enable_autograd_cache == before


def test_in_backward() -> None:
    seen = []
    x = sample().requires_grad_()
    x.register_hook(lambda grad: seen.append(torch_compat.in_backward()))
    x.sum().backward()
    assert seen == [True]
    assert not torch_compat.in_backward()


def test_what_is_traced_is_made_only_for_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[tuple[str, dict[str, str], str]] = []
    monkeypatch.setattr(
        torch._logging,
        "trace_structured",
        lambda event, *, metadata_fn, payload_fn: traced.append((event, metadata_fn(), payload_fn())),
    )
    torch_compat.trace_artifact("plan", "json", lambda: "{}")
    torch_compat.trace_graph("after", lambda: "def forward(): ...")
    assert traced == [
        ("artifact", {"name": "plan", "encoding": "json"}, "{}"),
        ("graph_dump", {"name": "after"}, "def forward(): ..."),
    ]
    monkeypatch.delattr(torch._logging, "trace_structured")
    torch_compat.trace_graph("after", lambda: pytest.fail("made for nothing"))


def test_flop_formulas_of_torch_and_ours() -> None:
    matrix = torch_compat.flop_formula(torch.ops.aten.mm.default)
    assert matrix is not None
    assert matrix([2, 3], [3, 5], out_val=[2, 5]) == 2 * 2 * 3 * 5
    on_cpu = torch_compat.flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)
    assert on_cpu is not None
    shape = [2, 4, 6, 8]
    assert on_cpu(shape, shape, shape, out_val=shape) == 2 * (2 * 2 * 4 * 6 * 6 * 8)
    ours = torch_compat.flop_formula(torch.ops.attnres.depth_attention.default)
    assert ours is not None
    assert ours([shape, shape], [8], out_val=shape) == 3 * 2 * 2 * 2 * 4 * 6 * 8
    assert torch_compat.flop_formula(torch.ops.aten.add.Tensor) is None


def test_what_shares_memory_has_one_storage_also_without_data() -> None:
    one, other = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    assert torch_compat.storage_id(one) == torch_compat.storage_id(one.view(2, 2))
    assert torch_compat.storage_id(one) != torch_compat.storage_id(other)


def test_a_node_marked_for_recompute_is_made_again() -> None:
    graph = torch.fx.Graph()
    node, other = graph.placeholder("x"), graph.placeholder("y")
    torch_compat.mark_for_recompute(node)
    assert torch_compat.is_made_again(node)
    assert not torch_compat.is_made_again(other)
