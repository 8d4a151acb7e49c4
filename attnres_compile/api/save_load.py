"""``save`` and ``load``: the AttnRes parameters and the plan, apart from the model's own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attnres_compile.model import parameters
from attnres_compile.model.errors import SavedStateError
from attnres_compile.model.parameters import parameters_of, require_parameters, unwrapped
from attnres_passes.ir.plan import Plan

PLAN_FILE = "attnres.json"
TENSOR_FILE = "attnres.safetensors"


def save(model: nn.Module, directory: str | Path) -> None:
    """Write ``attnres.json`` (the plan) and ``attnres.safetensors`` (queries and key norms).

    Args:
        model: a prepared model.
        directory: made if it is not there.

    Raises:
        NotPreparedError.
        SavedStateError: safetensors is not installed.
    """
    added = require_parameters(model)
    _, save_file = _safetensors()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN_FILE).write_text(json.dumps(added.plan.to_dict(), indent=1) + "\n")
    save_file({name: value.contiguous() for name, value in added.state_dict().items()}, folder / TENSOR_FILE)


def load(model: nn.Module, directory: str | Path) -> Plan:
    """Load what ``save`` wrote, strictly, and return the plan.

    Args:
        model: prepared, or to be prepared with the saved plan.
        directory: that ``save`` wrote into.

    Raises:
        SavedStateError: files are missing, or streams or shapes differ; the model is then as it was.
    """
    model = unwrapped(model)
    folder = Path(directory)
    plan = _read_plan(folder)
    load_file, _ = _safetensors()
    if not (folder / TENSOR_FILE).is_file():
        raise SavedStateError(f"{folder} holds no {TENSOR_FILE}; give a directory that attnres_compile.save wrote.")
    state: dict[str, Tensor] = load_file(folder / TENSOR_FILE)
    added = parameters_of(model)
    if added is not None and _shape(added.plan) != _shape(plan):
        raise SavedStateError(
            f"{folder} was saved from a model with other streams, reads or blocks than {type(model).__name__} is "
            "prepared with; prepare it with the saved options, or call attnres_compile.unprepare(model) first."
        )
    was_prepared = added is not None
    added = added or parameters.register(model, plan)
    try:
        _copy_strictly(added, state, folder)
    except SavedStateError:
        if not was_prepared:
            parameters.remove(model)
        raise
    return added.plan


def _copy_strictly(added: parameters.AttnResParameters, state: dict[str, Tensor], folder: Path) -> None:
    own = added.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(name for name in own if own[name].shape != state[name].shape)
    if wrong:
        raise SavedStateError(
            f"{folder / TENSOR_FILE} does not fit the plan: {', '.join(wrong[:4])} "
            f"{'and others ' if len(wrong) > 4 else ''}missing, unexpected or of another shape; save it again from "
            "the model that was trained."
        )
    added.load_state_dict(state)


def _read_plan(folder: Path) -> Plan:
    path = folder / PLAN_FILE
    if not path.is_file():
        raise SavedStateError(f"{folder} holds no {PLAN_FILE}; give a directory that attnres_compile.save wrote.")
    try:
        return Plan.from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise SavedStateError(f"{path} is not a saved plan ({error}); save it again.") from error


def _shape(plan: Plan) -> list[Any]:
    """What must agree for parameters to mean the same: widths, blocks and the places of the reads."""
    return [
        (
            stream.width,
            stream.block_size,
            len(stream.writes),
            [(read.state, read.num_sources) for read in stream.reads],
        )
        for stream in plan.streams
    ]


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise SavedStateError(
            "saving needs the package safetensors; install it: pip install 'attnres-compile[hf]'."
        ) from error
    return load_file, save_file
