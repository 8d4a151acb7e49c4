"""The two files of a saved directory, written so that a save that is killed leaves the one before it.

``attnres.safetensors`` is all of the checkpoint: the tensors, and in the metadata of its header the plan that they
belong to and a digest of both. Its rename is the moment at which one checkpoint takes the place of another, so that a
plan is never read with the tensors of another save. ``attnres.json`` is the same plan for people and other programs.
Directories of version 0.1.0, whose tensors carry no plan, are read with the plan in ``attnres.json``.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from attnres_compile.api.atomic_files import replace_files
from attnres_compile.model import plan_tensor
from attnres_compile.model.errors import SavedStateError
from attnres_passes.ir.plan import SCHEMA_VERSION, Plan
from attnres_passes.ir.read_parameters import forms_of_read

PLAN_FILE = "attnres.json"
TENSOR_FILE = "attnres.safetensors"

_METADATA = "attnres"
"""Key of the plan in the header. There is no other, since safetensors writes several in any order."""

_DIGEST = "digest"


@dataclass(frozen=True)
class SavedDirectory:
    """What one save wrote: the plan, and the tensors by their names below ``model.attnres``."""

    plan: Plan
    tensors: Mapping[str, Tensor]


def write(folder: Path, saved: SavedDirectory) -> None:
    """Replace what ``folder`` holds, all or nothing.

    Args:
        folder: made if it is not there.
        saved: to write; its tensors hold data.

    Raises:
        SavedStateError: safetensors is not installed, or a file cannot be written; what was there is still there.
    """
    data = saved.plan.to_dict()
    data = {_DIGEST: _digest_of(_serialised(saved.tensors, {}), data), **data}
    tensors = _serialised(saved.tensors, {_METADATA: json.dumps(data)})
    readable = json.dumps(data, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In this order: a new plan beside tensors of version 0.1.0, which name no plan, would pass for theirs.
        replace_files(folder, {TENSOR_FILE: tensors, PLAN_FILE: readable.encode()})
    except OSError as error:
        raise SavedStateError(
            f"{folder} cannot be written ({error}); give a directory with room and the right to write."
        ) from error


def read(folder: Path) -> SavedDirectory:
    """What the last save wrote that was not interrupted.

    Args:
        folder: that ``write`` wrote into, or version 0.1.0.

    Raises:
        SavedStateError: a file is missing, damaged, changed by hand, or of another schema.
    """
    path = folder / TENSOR_FILE
    readable = _readable_plan(folder)
    content = _content_of(path)
    written, tensors = _parsed(path, content)
    if written is None:
        # Version 0.1.0, or a program that kept the tensors alone: then ``plan_tensor`` among them says what they mean.
        if readable is None or (_DIGEST in readable and plan_tensor.NAME not in tensors):
            raise SavedStateError(
                f"{path} does not say which plan it belongs to, and {PLAN_FILE} beside it is "
                f"{'missing' if readable is None else 'of another save'}; save it again from the model that was "
                "trained."
            )
        return SavedDirectory(_plan_from(readable, folder / PLAN_FILE), tensors)
    data = {name: value for name, value in written.items() if name != _DIGEST}
    if written.get(_DIGEST) != _digest_of(content, data):
        raise SavedStateError(f"{path} is damaged: its digest is not that of its content; take another copy of it.")
    if readable is not None and readable != written:
        _check_other(readable, written, tensors, folder)
    return SavedDirectory(_plan_from(data, path), tensors)


def check_shapes(plan: Plan, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare tensors with the parameters of a plan.

    Args:
        plan: that they are for.
        tensors: by their names below ``model.attnres``.
        path: of the file, for the message.

    Raises:
        SavedStateError: names what is missing, unexpected or of another shape.
    """
    expected = {
        f"streams.{s}.reads.{k}.{form.path}": form.shape
        for s, stream in enumerate(plan.streams)
        for k in range(len(stream.parametrized_reads))
        for form in forms_of_read(plan.config.mechanism, stream.width)
    }
    given = {name: tuple(value.shape) for name, value in tensors.items() if name != plan_tensor.NAME}
    wrong = sorted(expected.keys() ^ given.keys()) or sorted(name for name in given if given[name] != expected[name])
    if wrong:
        raise SavedStateError(
            f"{path} does not fit the plan: {', '.join(wrong[:4])} "
            f"{'and others ' if len(wrong) > 4 else ''}missing, unexpected or of another shape; save it again from "
            "the model that was trained."
        )


def _check_other(
    readable: Mapping[str, Any], written: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """``readable`` is in attnres.json and is not ``written``, which was put there when the tensors were saved."""
    plan = _plan_from(readable, folder / PLAN_FILE)
    if readable.get(_DIGEST) == written[_DIGEST]:
        check_shapes(plan, tensors, folder / TENSOR_FILE)
        raise SavedStateError(
            f"{folder / PLAN_FILE} was changed after it was saved, and {TENSOR_FILE} holds the plan that its tensors "
            f"were trained with; delete {PLAN_FILE} to load with that one."
        )
    warnings.warn(
        f"attnres: {folder / PLAN_FILE} is not of the save that {TENSOR_FILE} is of, which was interrupted or copied "
        f"here; {TENSOR_FILE} is loaded with the plan in it.",
        stacklevel=4,
    )


def _readable_plan(folder: Path) -> dict[str, Any] | None:
    """Content of attnres.json, None if there is none: ``attnres.safetensors`` may travel alone."""
    path = folder / PLAN_FILE
    if not path.exists() and (folder / TENSOR_FILE).exists():
        return None
    try:
        data = json.loads(_content_of(path))
    except ValueError as error:
        raise SavedStateError(f"{path} is not a saved plan ({error}); save it again.") from error
    if not isinstance(data, dict):
        raise SavedStateError(f"{path} is not a saved plan (it holds no object); save it again.")
    return data


def _plan_from(data: Mapping[str, Any], path: Path) -> Plan:
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise SavedStateError(
            f"{path} has schema_version {version!r}, and this attnres_compile reads {SCHEMA_VERSION}; update it, or "
            "save again with this one."
        )
    try:
        plan = Plan.from_dict(data)
        _check_numbers(plan)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise SavedStateError(f"{path} is not a saved plan ({what}); save it again.") from error
    return plan


def _check_numbers(plan: Plan) -> None:
    """Raises ValueError: parameters are made from these numbers, and a dataclass takes anything."""
    for index, stream in enumerate(plan.streams):
        numbers = {name: getattr(stream, name) for name in ("width", "block_size", "num_blocks")}
        numbers |= {f"num_sources of read {k}": read.num_sources for k, read in enumerate(stream.reads)}
        for name, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} of stream {index} is not an integer >= 1")


def _content_of(path: Path) -> bytes:
    if not path.parent.is_dir():
        kind = "is a file" if path.parent.exists() else "is not there"
        raise SavedStateError(f"{path.parent} {kind}; give a directory that attnres_compile.save wrote.")
    if not path.is_file():
        raise SavedStateError(f"{path.parent} holds no {path.name}; give a directory that attnres_compile.save wrote.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SavedStateError(f"{path} cannot be read ({error}); give a directory that you may read.") from error


def _parsed(path: Path, content: bytes) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The plan in the header of a safetensors file, as plain data, None if there is none; and the tensors."""
    tools = _safetensors()
    try:
        tensors: dict[str, Tensor] = tools.load(content)
        plan = _header_of(content).get("__metadata__", {}).get(_METADATA)
        return None if plan is None else dict(json.loads(plan)), tensors
    except Exception as error:  # The parser's own error is no ValueError, and torch's differ with what is wrong.
        raise SavedStateError(
            f"{path} is truncated or is no safetensors file ({error}); take another copy of it, or save it again."
        ) from error


def _header_of(content: bytes) -> dict[str, Any]:
    """The table of tensors at the head of a safetensors file: 8 bytes of length, then JSON."""
    header: dict[str, Any] = json.loads(content[8 : 8 + _header_length(content)])
    return header


def _header_length(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def _digest_of(content: bytes, plan: Mapping[str, Any]) -> str:
    """Of a plan as plain data, and of the tensors in a safetensors file, whatever its metadata."""
    table = {name: entry for name, entry in _header_of(content).items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps([plan, table], sort_keys=True).encode())
    digest.update(content[8 + _header_length(content) :])
    return digest.hexdigest()


def _serialised(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    content: bytes = _safetensors().save(dict(tensors), metadata)
    return content


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise SavedStateError(
            "saving needs the package safetensors; install it: pip install 'attnres-compile[hf]'."
        ) from error
    return safetensors.torch
