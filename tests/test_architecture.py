"""The shape of the repository: folders, imports between the packages, and what an import of them may cost."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest first: a package may import itself and those before it.
PACKAGES = {
    "attnres_kernels": ROOT / "kernels" / "attnres_kernels",
    "attnres_passes": ROOT / "passes" / "attnres_passes",
    "attnres_compile": ROOT / "attnres_compile",
}
TOP_LEVEL = {
    *("attnres_compile", "passes", "kernels", "tests", "examples", "docs", "findings"),
    *("pyproject.toml", "README.md", "LICENSE", "Makefile", "CONTRIBUTING.md", "CHANGELOG.md"),
}
MAX_LINES = 300
MAX_FILES = 12


def modules(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


ALL_MODULES = [path for package in PACKAGES for path in modules(package)]


@functools.cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported_roots(tree: ast.AST) -> Iterator[str]:
    """Top-level names of everything imported anywhere in the file, lazily inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the three packages of this checkout first."""
    paths = os.pathsep.join(str(path.parent) for path in PACKAGES.values())
    inherited = os.environ.get("PYTHONPATH")
    search = os.pathsep.join(filter(None, [paths, inherited]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_package_has_modules() -> None:
    assert all(modules(package) for package in PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    order = list(PACKAGES)
    above = set(order[order.index(package) + 1 :])
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(package)
        for name in sorted(set(imported_roots(syntax(path))) & above)
    ]
    assert not wrong, f"{package} may not import {sorted(above)}"


def test_passes_never_import_triton() -> None:
    assert not [path for path in modules("attnres_passes") if "triton" in imported_roots(syntax(path))]


def test_shipped_code_never_imports_tests() -> None:
    assert not [path for path in ALL_MODULES if "tests" in imported_roots(syntax(path))]


def test_shipped_code_never_imports_benchmarks() -> None:
    """They stay in the repository; from its root a wheel's module would find them all the same."""
    benchmarks = {"kernels", "benchmarks"}
    assert not [path for path in ALL_MODULES if benchmarks & set(imported_roots(syntax(path)))]


def test_torch_pipelining_is_reached_from_two_files() -> None:
    """What is private of it is in one of them; the other names schedules."""
    using = {
        path.name
        for path in ALL_MODULES
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed.pipelining")
    }
    assert using == {"torch_stage.py", "schedules.py"}


def test_no_oversized_files() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ALL_MODULES}
    assert not {name: lines for name, lines in sizes.items() if lines > MAX_LINES}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_oversized_folders(package: str) -> None:
    folders = {path.parent for path in modules(package)}
    sizes = {str(folder.relative_to(ROOT)): sum(path.is_file() for path in folder.iterdir()) for folder in folders}
    assert not {name: files for name, files in sizes.items() if files > MAX_FILES}


def test_the_levels_fit_a_glance() -> None:
    """What is at the top of the passes is read as the compiler's table of contents."""
    top = [path.name for path in PACKAGES["attnres_passes"].iterdir() if path.name != "__pycache__"]
    assert len(top) <= MAX_FILES, sorted(top)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_code_is_a_package(package: str) -> None:
    """setuptools ships only folders with an ``__init__.py``."""
    folders = {path.parent for path in modules(package)}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]


def test_types_are_shipped() -> None:
    assert not [package for package, path in PACKAGES.items() if not (path / "py.typed").is_file()]
    data = project()["tool"]["setuptools"]["package-data"]["*"]
    assert {"py.typed", "*.md"} <= set(data)


@functools.cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_backend_is_registered_by_the_entry_point_only() -> None:
    """torch asserts on a name registered twice, depending on which of the two is seen first."""
    entry_points = project()["project"]["entry-points"]
    assert entry_points == {"torch_dynamo_backends": {"attnres": "attnres_compile.compile.backend:attnres"}}
    uses = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ALL_MODULES
        for node in ast.walk(syntax(path))
        if "register_backend" in {getattr(node, field, None) for field in ("id", "attr", "name")}
    ]
    assert not uses


def test_entry_points_lead_somewhere() -> None:
    metadata = project()["project"]
    groups = [metadata["scripts"], *metadata["entry-points"].values()]
    for target in [target for group in groups for target in group.values()]:
        module, _, name = target.partition(":")
        path = ROOT.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert file.is_file(), target
        names = {getattr(node, "name", None) for node in ast.walk(syntax(file))}
        assert name in names, target


def test_dependencies_have_no_upper_bounds() -> None:
    metadata = project()["project"]
    listed = [
        metadata["dependencies"],
        *metadata["optional-dependencies"].values(),
        [metadata["requires-python"]],
    ]
    requirements = [text.partition(";")[0] for group in listed for text in group]
    assert not [text for text in requirements if any(mark in text for mark in ("<", "==", "~=", "!="))]


def test_top_level_holds_only_what_the_design_says() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout, so ignored files cannot be told apart")
    top = {name.partition("/")[0] for name in listing.stdout.split("\0") if name}
    assert not {name for name in top - TOP_LEVEL if not name.startswith(".")}


def test_import_needs_no_triton_and_no_gpu() -> None:
    """Triton is made impossible to import, and torch's CUDA initialisation an error."""
    code = """
import sys
sys.modules["triton"] = None
import torch
def refuse(*args, **kwargs):
    raise AssertionError("CUDA was initialised by the import")
torch.cuda._lazy_init = refuse
import attnres_compile, attnres_passes, attnres_kernels
assert not torch.cuda.is_initialized()
print("imported", attnres_compile.__file__)
"""
    result = run_python(code, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert str(ROOT / "attnres_compile") in result.stdout


def test_import_does_not_load_triton() -> None:
    code = """
import sys
import torch
before = "triton" in sys.modules
import attnres_compile, attnres_passes, attnres_kernels
print("by torch" if before else "by us" if "triton" in sys.modules else "not loaded")
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    if "by torch" in result.stdout:
        pytest.skip("torch loads Triton by itself here")
    assert "not loaded" in result.stdout


def test_verify_loads_no_page_and_nothing_that_draws() -> None:
    code = """
import sys
import attnres_compile
attnres_compile.verify
unwanted = ("jinja2", "matplotlib", "networkx.drawing", "attnres_compile.inspection", "attnres_compile.report")
print(sorted(name for name in sys.modules if any(f"{name}.".startswith(f"{one}.") for one in unwanted)))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
