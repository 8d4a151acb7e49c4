"""Module paths and source lines of nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from attnres_passes.ir.provenance import common_prefix, module_path, source_line, sublayer_path
from tests.passes.helpers import WIDTH, captured, line_of


def node_with(**meta: object) -> Node:
    node = Graph().placeholder("x")
    node.meta.update(meta)
    return node


@pytest.mark.parametrize(
    ("recorded", "path"),
    [
        ("L['self']", ""),
        ("L['self'].transformer.h.0.attn", "transformer.h.0.attn"),
        ("L['self']._modules['h']._modules['0']._modules['ln_1']", "h.0.ln_1"),
        ("L['self'].h[3].mlp", "h.3.mlp"),
        ('L["model"].layers["encoder"]', "layers.encoder"),
        ("G['model'].blocks[0]", "blocks.0"),
        ("L['self']._orig_mod.h.0", "h.0"),
        ("L['self'].my_modules.0", "my_modules.0"),
        ("L['self'].h.0._checkpoint_wrapped_module.mlp", "h.0.mlp"),
        ("L['self'].h.0._checkpoint_wrapped_module", "h.0"),
        ("L['self']._modules['h'].__dict__['_modules']['_checkpoint_wrapped_module']._modules['ln_1']", "h.ln_1"),
        ("L['self'].h.0.forward.__kwdefaults__['f'].__self__.ln_1", "h.0.ln_1"),
        ("L['self'].h[0].forward.__closure__[1].cell_contents.func.__self__.ln_1", "h.0.ln_1"),
        ("getattr(L['self'], 'layer-0').linear", "layer-0.linear"),
        ("getattr(getattr(L['self'].h[3], 'sub-layer'), 'norm-1')", "h.3.sub-layer.norm-1"),
    ],
)
def test_module_path_is_relative_to_the_traced_root(recorded: str, path: str) -> None:
    stack = {"outer": ("L['self']", nn.Module), "inner": (recorded, nn.Linear)}
    assert module_path(node_with(nn_module_stack=stack)) == path


def test_node_without_a_module_has_no_path() -> None:
    assert module_path(node_with()) == ""
    assert module_path(node_with(nn_module_stack={})) == ""


def test_source_line_is_the_innermost_frame_outside_torch() -> None:
    torch_file = Path(torch.__file__).parent / "nn" / "modules" / "linear.py"
    trace = (
        '  File "/home/user/model.py", line 10, in forward\n    x = self.block(x)\n'
        '  File "/home/user/block.py", line 22, in forward\n    return self.linear(x)\n'
        f'  File "{torch_file}", line 125, in forward\n    return F.linear(input, self.weight, self.bias)\n'
    )
    assert source_line(node_with(stack_trace=trace)) == "/home/user/block.py:22"


def test_source_line_inside_torch_alone_is_its_last_frame() -> None:
    torch_file = Path(torch.__file__).parent / "nn" / "functional.py"
    trace = f'  File "{torch_file}", line 7, in f\n  File "{torch_file}", line 9, in g\n'
    assert source_line(node_with(stack_trace=trace)) == f"{torch_file}:9"


@pytest.mark.parametrize("meta", [{}, {"stack_trace": None}, {"stack_trace": "no frames"}])
def test_node_without_a_trace_has_no_line(meta: dict[str, object]) -> None:
    assert source_line(node_with(**meta)) == ""


@pytest.mark.parametrize(
    ("adds", "made_in", "sublayer"),
    [
        ("h.0", "h.0.attn.resid_dropout", "h.0.attn"),
        ("h.0", "h.0.mlp", "h.0.mlp"),
        ("h.0", "h.0", "h.0"),
        ("h.1", "h.10.attn", "h.1"),
        ("", "attn.proj", "attn"),
        ("", "", ""),
        ("h.0", "", "h.0"),
        ("h.0.residual", "h.0.attn", "h.0.residual"),
    ],
)
def test_sublayer_is_the_child_of_the_adding_module(adds: str, made_in: str, sublayer: str) -> None:
    assert sublayer_path(adds, made_in) == sublayer


@pytest.mark.parametrize(
    ("paths", "prefix"),
    [
        (["h.0.attn", "h.0.mlp", "h.1.attn"], "h"),
        (["encoder.layers.0.a", "encoder.layers.1.a"], "encoder.layers"),
        (["h.1", "h.10"], "h"),
        (["a", "b"], ""),
        (["a.b"], "a.b"),
        (["", "a.b", "a.c"], "a"),
        ([], ""),
        ([""], ""),
    ],
)
def test_common_prefix_ends_at_whole_names(paths: list[str], prefix: str) -> None:
    assert common_prefix(paths) == prefix


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # linear
        return y.sin()  # sin


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(Inner(), Inner())
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x).cos()  # cos


def test_nodes_of_a_captured_model_know_module_and_line() -> None:
    nodes = [node for node in captured(Outer()).gm.graph.nodes if node.op.startswith("call")]
    found = [(module_path(node), source_line(node)) for node in nodes]
    linear, sin = (f"{__file__}:{line_of(Inner.forward, f'# {name}')}" for name in ("linear", "sin"))
    cos = f"{__file__}:{line_of(Outer.forward, '# cos')}"
    assert found == [
        ("stack.0.linear", linear),
        ("stack.0", sin),
        ("stack.1.linear", linear),
        ("stack.1", sin),
        ("", cos),
    ]


def test_package_whose_folder_begins_as_torchs_does_is_not_torch() -> None:
    torch_folder = Path(torch.__file__).parent
    vision, functional = torch_folder.with_name("torchvision") / "vit.py", torch_folder / "nn" / "functional.py"
    trace = "\n".join(
        f'  File "{file}", line {line}, in forward\n    x'
        for file, line in [("run.py", 1), (vision, 2), (functional, 3)]
    )
    assert source_line(node_with(stack_trace=trace)) == f"{vision}:2"
