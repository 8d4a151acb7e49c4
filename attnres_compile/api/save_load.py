"""``save`` and ``load``: the AttnRes parameters and the plan, apart from the model's own weights."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from attnres_compile.api import saved_directory
from attnres_compile.api.saved_directory import PLAN_FILE as PLAN_FILE
from attnres_compile.api.saved_directory import TENSOR_FILE, SavedDirectory
from attnres_compile.model import parameters, plan_tensor
from attnres_compile.model.errors import SavedStateError
from attnres_compile.model.parameters import AttnResParameters, parameters_of, require_parameters, unwrapped
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_parameters import forms_of_read


def save(model: nn.Module, directory: str | Path) -> None:
    """Write ``attnres.safetensors`` (queries, key norms and the plan) and ``attnres.json`` (the plan, to be read).

    A save that is killed at any moment leaves the checkpoint that was there before, or the new one, whole; what it
    left half written is removed by the next save. Every rank may save into one directory at once: each writes files
    of its own and renames them, and the last one counts. Equal ranks need only save on one of them, unless the
    parameters are sharded (FSDP2): they are gathered, and every rank has to call this.

    Args:
        model: a prepared model.
        directory: made if it is not there.

    Raises:
        NotPreparedError.
        SavedStateError: safetensors is not installed, the directory cannot be written, or the model has no data or
            weights of another plan; the directory is then as it was.
    """
    added = require_parameters(model)
    saved_directory.write(Path(directory), SavedDirectory(added.plan, whole_tensors(added)))


def whole_tensors(added: AttnResParameters) -> dict[str, Tensor]:
    """The parameters of a model and its plan tensor, by their names below ``model.attnres``, sharded ones gathered.

    Raises:
        SavedStateError: they have no data, or are of another plan.
    """
    plan_tensor.check_plan_tensor(added)
    current = {**_parameters_by_name(added), plan_tensor.NAME: added.get_buffer(plan_tensor.NAME)}
    tensors = {name: _whole(value) for name, value in current.items()}
    without_data = [name for name, value in tensors.items() if value.is_meta]
    if without_data:
        raise SavedStateError(f"{without_data[0]} is on the meta device and has no data; load weights first.")
    return tensors


def load(model: nn.Module, directory: str | Path) -> Plan:
    """Load what ``save`` wrote, strictly, and return the plan.

    Args:
        model: prepared with a plan that means the same (blocks, scale, eps, places of reads), or to be
            prepared with the saved plan. Values are cast to the dtype of its parameters.
        directory: that ``save`` wrote into.

    Raises:
        RegistrationError.
        SavedStateError: files are missing, damaged or of another schema, the plan is another one, or tensors have
            another name, shape or kind of dtype, or a value that is not finite; the model is then as it was.
    """
    folder = Path(directory)
    return adopt(unwrapped(model), saved_directory.read(folder), folder / TENSOR_FILE)


def adopt(model: nn.Module, saved: SavedDirectory, path: Path) -> Plan:
    """Take over saved parameters, strictly; a model that is not prepared is, with their plan. Returns the plan.

    Args:
        model: without a wrapper.
        saved: to take over.
        path: of the file that they are from, for messages.

    Raises:
        RegistrationError.
        SavedStateError: the plan is another one, or a tensor does not fit; the model is then as it was.
    """
    _check_tensors(saved, path)
    added = parameters_of(model)
    if added is not None:
        _check_plan(added, saved.plan, model, path.parent)
        _copy(added, saved.tensors, path)
        return added.plan
    added = parameters.register(model, saved.plan)
    try:
        _copy(added, saved.tensors, path)
    except BaseException:
        parameters.remove(model)
        raise
    return added.plan


def _check_plan(added: AttnResParameters, saved: Plan, model: nn.Module, folder: Path) -> None:
    then, now = plan_tensor.facts_of(saved), plan_tensor.facts_of(added.plan)
    found = plan_tensor.differences(then, now)
    if found:
        alike = (then.num_streams, then.streams) == (now.num_streams, now.streams)
        differs = (then.scale, then.eps) != (now.scale, now.eps)
        what = "another scale or eps" if alike and differs else "other streams, reads or blocks"
        what = what if then.mechanism == now.mechanism else "another mechanism"
        raise SavedStateError(
            f"{folder} was saved from a model with {what} than {type(model).__name__} is prepared with: "
            f"{'; '.join(found)}. Call attnres_compile.unprepare(model) first, and load prepares it with the saved "
            f"plan; or prepare it with {plan_tensor.options_of(then)}."
        )


def _check_tensors(saved: SavedDirectory, path: Path) -> None:
    """Compare the tensors with their own plan, so that nothing is registered for a file that will not load."""
    tensors = saved.tensors
    saved_directory.check_shapes(saved.plan, tensors, path)
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise SavedStateError(f"{name} in {path} is {value.dtype}, and parameters are floating; save it again.")
        if not torch.isfinite(value.float() if value.dtype.itemsize < 4 else value).all():
            raise SavedStateError(f"{name} in {path} holds NaN or infinity; take a checkpoint from before that.")
    if plan_tensor.NAME in tensors:
        _check_own_tensor(tensors[plan_tensor.NAME], saved.plan, path)


def _check_own_tensor(tensor: Tensor, plan: Plan, path: Path) -> None:
    """Of a file that another program put together."""
    try:
        facts = plan_tensor.facts_in(tensor)
    except SavedStateError as error:
        raise SavedStateError(f"{plan_tensor.NAME} in {path} {error}; save it again.") from error
    found = [] if facts is None else plan_tensor.differences(facts, plan_tensor.facts_of(plan))
    if found:
        raise SavedStateError(
            f"{path} holds tensors of another plan than the one beside them: {'; '.join(found)}; save it again from "
            "the model that was trained."
        )


def _copy(added: AttnResParameters, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors that fit, after the last thing that can be wrong with them."""
    own = _parameters_by_name(added)
    cast = {name: tensors[name].to(parameter.dtype) for name, parameter in own.items()}
    overflown = [name for name, value in cast.items() if not torch.isfinite(value).all()]
    if overflown:
        raise SavedStateError(
            f"{overflown[0]} in {path} is too large for {own[overflown[0]].dtype} of the model; load "
            "into a model of a wider dtype."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(_placed_like(parameter, cast[name]))
        # Weights of another plan may have come in place before; these are of the plan.
        buffer = added.get_buffer(plan_tensor.NAME)
        buffer.copy_(_placed_like(buffer, plan_tensor.encode(added.plan, torch.float32, torch.device("cpu"))))


def _parameters_by_name(added: AttnResParameters) -> dict[str, Tensor]:
    """The parameters that count now, by the names that they were registered under.

    A library that trains copies of modules, as peft does by ``modules_to_save``, puts a wrapper in the place of each.
    """
    found: dict[str, Tensor] = {}
    for read in added.plan.depth_reads:
        path = added.path(read)
        module: Any = added.get_submodule(path)
        for form in forms_of_read(added.plan.config.mechanism, added.plan.streams[read.stream].width):
            found[f"{path}.{form.path}"] = operator.attrgetter(form.path)(module)
    return found


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Every rank has read the whole value, and keeps its shard of it."""
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(mesh.device_type), mesh, placements)


def _whole(value: Tensor) -> Tensor:
    """A tensor that safetensors can write; a sharded one is gathered, on every rank."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().contiguous()
