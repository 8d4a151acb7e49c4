"""Where a node comes from in the user's code: the path of its module and the source line."""

from __future__ import annotations

import re
from functools import lru_cache

from torch.fx import Node

from attnres_passes.ir import regions
from attnres_passes.torch_private.graph_copies import source_name
from attnres_passes.torch_private.version import TORCH_FOLDER

# Frames of torch and of third-party decorators around a forward say nothing about the user's line.
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_GETATTR = re.compile(r"getattr\((?P<base>[^()]*), (?P<quote>['\"])(?P<name>[^()'\"]*)(?P=quote)\)")
_AROUND = re.compile(r"\b(__dict__|_modules|_orig_mod|_checkpoint_wrapped_module)\b\.?")
# A forward that was put in place of a module's own, and calls that one: the module is the same.
_REPLACED_FORWARD = re.compile(r"\.forward(?:\.\w+|\[[^\]]*\])*?\.__self__\b")
# A decorated forward is given its module as the first of ``*args`` (transformers 5.24 decorates most).
_ROOT = re.compile(r"^(?:L\[(['\"])args\1\]\[0\]|[LG]\[(?P<quote>['\"])[^'\"]*(?P=quote)\])\.?")


def copy(old: Node, new: Node) -> None:
    """Let a node of ours say where another node comes from.

    Args:
        old: the node that it stands for.
        new: the node of ours.
    """
    for key in ("stack_trace", "nn_module_stack", regions.KEY):
        if key in old.meta:
            new.meta[key] = old.meta[key]


def module_path(node: Node) -> str:
    """Path of the innermost module that the node was traced in, relative to the traced root ('' for the root)."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return relative_path(next(reversed(list(stack.values())))[0])


def owner_path(node: Node) -> str:
    """Path of the module that holds a parameter or a buffer which is given to the graph; '' for all other nodes."""
    path, _, kind = relative_path(source_name(node)).rpartition(".")[0].rpartition(".")
    return path if kind in ("_parameters", "_buffers") else ""


@lru_cache(maxsize=65536)
def relative_path(path: str) -> str:
    """``L['self'].transformer.h.0`` -> ``transformer.h.0``; indexing and getattr as attribute access.

    So is ``L['args'][0].transformer.h.0``, of a forward behind a decorator.

    Modules that torch puts around one of the user's (a compiled one, a checkpointed one) are not in it, as they are not
    in the names of the state dict.
    """
    replaced = 1
    while replaced:
        # Names that are no identifiers (layer-0), the innermost first.
        path, replaced = _GETATTR.subn(r"\g<base>.\g<name>", path)
    path = _ROOT.sub("", _REPLACED_FORWARD.sub("", path))
    path = re.sub(r"\[['\"]?([^\]'\"]+)['\"]?\]", r".\1", path)
    path = _AROUND.sub("", path)
    return path.strip(".")


def source_line(node: Node) -> str:
    """``file:line`` of the innermost frame outside torch that created the node; '' when torch recorded none."""
    trace = node.meta.get("stack_trace")
    return _innermost_user_frame(trace) if trace else ""


@lru_cache(maxsize=65536)
def _innermost_user_frame(trace: str) -> str:
    frames = list(_FRAME.finditer(trace))
    for frame in reversed(frames):
        if not frame["file"].startswith(TORCH_FOLDER):
            return f"{frame['file']}:{frame['line']}"
    return f"{frames[-1]['file']}:{frames[-1]['line']}" if frames else ""


def sublayer_path(add_module: str, branch_module: str) -> str:
    """The sublayer that produced a write: the child of the adding module on the way to the branch's module.

    An addition in ``h.0`` of a value made in ``h.0.attn.resid_dropout`` belongs to the sublayer ``h.0.attn``.

    Args:
        add_module: path of the module that adds.
        branch_module: path of the module that made the branch.
    """
    prefix = f"{add_module}." if add_module else ""
    if branch_module and branch_module.startswith(prefix):
        return prefix + branch_module[len(prefix) :].split(".")[0]
    return add_module


def common_prefix(paths: list[str]) -> str:
    """The longest module path that all ``paths`` lie in."""
    split = [path.split(".") for path in paths if path]
    if not split:
        return ""
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
