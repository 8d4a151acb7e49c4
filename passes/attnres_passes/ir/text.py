"""A graph as Python text: one line per node, its shape as an annotation, what it is for as a comment.

The text can be executed (``tests/passes/ir/text_graph.py`` does). ``self`` is the module of the graph, ``F`` is
``torch.nn.functional``, a function of attnres_kernels goes by the name of its file (``naive.key_vector``), other
functions by their paths, and ``device``, ``inf`` and ``nan`` are names that FX keeps free for such values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import KEY
from attnres_passes.ir.plan import short_source
from attnres_passes.ir.regions import region_of
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.operators import is_operator

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
}
_SHORT = {"_operator": "operator", "torch._C._nn": "F", "torch.nn.functional": "F"}
"""What the text calls modules."""


def graph_text(gm: GraphModule) -> str:
    """``gm`` as a Python function. A comment line opens each run of nodes of one module and source line."""
    lines: list[str] = []
    place = None
    placeholders = []
    names = {node.name for node in gm.graph.nodes}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            placeholders.append(f"    {node.name}{_type(node)},{_comment(node)}")
            continue
        if node.op == "output":
            lines.append(f"    return {_argument(node.args[0], names)}")
            continue
        here = _place(node)
        if here != place and here:
            lines.append(f"    # {here}")
        place = here
        lines.append(f"    {node.name}{_type(node)} = {_expression(node, names)}{_comment(node)}")
    return "\n".join(["def forward(", "    self,", *placeholders, "):", *lines]) + "\n"


def _place(node: Node) -> str:
    return "  ".join(
        part for part in (provenance.module_path(node), short_source(provenance.source_line(node))) if part
    )


def _type(node: Node) -> str:
    value = example_value(node)
    if not isinstance(value, torch.Tensor):
        return ""
    return f": {tensor_text(value.shape, value.dtype)}"


def tensor_text(shape: Iterable[Any], dtype: torch.dtype) -> str:
    """A tensor as text, ``f32[2, s0, 768]``.

    Args:
        shape: numbers, and symbols for dynamic sizes.
        dtype: of its elements.
    """
    sizes = ", ".join(str(size) for size in shape) or "()"
    return f"{_DTYPES.get(dtype, str(dtype).removeprefix('torch.'))}[{sizes}]"


def _comment(node: Node) -> str:
    """What a node is for, and the region that the backward computes it again with."""
    annotation, region = node.meta.get(KEY), region_of(node)
    parts = [] if annotation is None else [f"attnres: {annotation}"]
    if region is not None:
        parts.append(f"region {'.'.join(str(one.number) for one in region.path)}")
    return f"  # {'; '.join(parts)}" if parts else ""


def _expression(node: Node, names: Collection[str]) -> str:
    if node.op == "get_attr":
        return f"self.{node.target}"
    keywords = [f"{name}={_argument(value, names)}" for name, value in node.kwargs.items()]
    if node.op == "call_method":
        receiver, *rest = (_argument(argument, names) for argument in node.args)
        return f"{receiver}.{node.target}({', '.join([*rest, *keywords])})"
    callee = f"self.{node.target}" if node.op == "call_module" else _callee(node.target, names)
    return f"{callee}({', '.join([*(_argument(argument, names) for argument in node.args), *keywords])})"


def _callee(target: Any, names: Collection[str]) -> str:
    """A function by a short name of its module, or by the whole one where the short one leads to something else."""
    module = getattr(target, "__module__", None) or ""
    if is_operator(target) or module.startswith("torch._ops."):
        return f"torch.ops.{target}".removesuffix(".default")
    name = str(getattr(target, "__qualname__", None) or getattr(target, "__name__", target))
    if "<locals>" in name:
        name = target.__name__  # torch makes some functions, such as max_pool2d, inside of others and names them so
    if not module or module.startswith("torch._VariableFunctions") or name.startswith("_VariableFunctions"):
        return f"torch.{name.rsplit('.', 1)[-1]}"
    short = module.rpartition(".")[2] if module.startswith("attnres_kernels") else _SHORT.get(module, module)
    is_other = short in names or (short == "F" and getattr(functional, name, None) is not target)
    return f"{module if is_other else short}.{name}"


def _argument(value: Any, names: Collection[str]) -> str:
    if isinstance(value, Node):
        return value.name
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _named_tuple(value, names)
    if isinstance(value, tuple):
        inner = ", ".join(_argument(part, names) for part in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(_argument(part, names) for part in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_argument(part, names)}" for key, part in value.items()) + "}"
    if isinstance(value, slice):
        return f"slice({_argument(value.start, names)}, {_argument(value.stop, names)}, {_argument(value.step, names)})"
    return repr(value)


def _named_tuple(value: Any, names: Collection[str]) -> str:
    """With the fields that are not their defaults."""
    defaults = value._field_defaults
    given = [(name, part) for name, part in value._asdict().items() if name not in defaults or part != defaults[name]]
    shown = [f"{name}={_argument(part, names)}" for name, part in given]
    return f"{_callee(type(value), names)}({', '.join(shown)})"
