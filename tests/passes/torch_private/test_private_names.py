"""Private names of torch are used in the folder ``torch_private`` only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

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


def test_no_other_file_uses_more_private_parts_of_torch() -> None:
    folder = ROOT / "passes" / "attnres_passes" / "torch_private"
    files = [path for top in ("attnres_compile", "passes", "kernels") for path in (ROOT / top).rglob("*.py")]
    used = {str(path.relative_to(ROOT)): private_names(path) for path in files if folder not in path.parents}
    assert not {name: names - KNOWN for name, names in used.items() if names - KNOWN}
    assert "torch._inductor.compile_fx.compile_fx" in private_names(folder / "inner_compilers.py")
    assert "torch._dynamo.guards.install_guard" in private_names(folder / "dynamo.py")
    assert "torch.ops._c10d_functional" in private_names(folder / "collectives.py")
