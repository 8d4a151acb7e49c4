"""AttnRes parameters in the files of a checkpoint, and models that were loaded from it without them.

Libraries that load weights by name leave out what a plain model has no place for. A model that was loaded so, and is
then prepared, would go on with zero queries in place of the trained ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnres_compile.model.errors import WeightsLeftOutError

PREFIX = "attnres."
"""What the names of the parameters of a prepared model begin with."""


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files that ``save_pretrained`` wrote a model into: one, or shards.

    Args:
        folder: that they are in.
        variant: as ``save_pretrained`` was given it.
    """
    name = re.escape("model" if variant is None else f"model.{variant}")
    form = re.compile(rf"{name}(-\d+-of-\d+)?\.safetensors")
    return sorted(path for path in folder.glob("model*.safetensors") if form.fullmatch(path.name))


def names_in(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, from its head alone. Raises OSError or ValueError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("it is truncated, or no safetensors file")
        header = json.loads(file.read(length))
    return [name for name in header if name != "__metadata__"]


def check_none_left_out(model: nn.Module) -> None:
    """Find a model whose weights are those of a checkpoint with AttnRes parameters, which it has no place for.

    It looks where a model of transformers says that it is from, if that is a directory on this machine.

    Args:
        model: not prepared.

    Raises:
        WeightsLeftOutError.
    """
    place = getattr(model, "name_or_path", None)
    if not isinstance(place, str) or not place or not Path(place).is_dir():
        return
    files = weight_files(Path(place))
    names = dict(_names(files))
    left_out = [name for name in names if name.startswith(PREFIX)]
    if left_out and _holds_weights_of(model, names):
        raise WeightsLeftOutError(
            f"{place} holds {len(left_out)} AttnRes tensors, and {type(model).__name__} was loaded from it without "
            f"them. Load it with attnres_compile.from_pretrained({place!r}, {type(model).__name__}), which prepares it "
            'with the saved plan; to begin anew with zero queries, set model.name_or_path = "" before.'
        )


def _names(files: list[Path]) -> Iterator[tuple[str, Path]]:
    for path in files:
        try:
            found = names_in(path)
        except (OSError, ValueError):
            continue  # whatever loaded the model has read something else
        yield from ((name, path) for name in found)


def _holds_weights_of(model: nn.Module, files: dict[str, Path]) -> bool:
    """Whether the first matrix of a model that files name has their values: a new model of one config has others."""
    own = {name: value for name, value in model.named_parameters() if value.ndim >= 2 and not value.is_meta}
    for name, path in files.items():
        # A model without a head, or with one that the saved model had not, has one part of the path less or more.
        candidates = (name, name.partition(".")[2], *(other for other in own if other.partition(".")[2] == name))
        found = next((own[candidate] for candidate in candidates if candidate in own), None)
        if found is not None:
            return _equal(found, _first_row(path, name))
    return False


def _first_row(path: Path, name: str) -> Tensor:
    from safetensors import safe_open

    file: Any
    with safe_open(path, framework="pt") as file:
        row: Tensor = file.get_slice(name)[:1]
    return row


def _equal(parameter: Tensor, row: Tensor) -> bool:
    whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    if whole.shape[1:] != row.shape[1:]:
        return False
    return torch.equal(whole[:1].detach().cpu(), row.to(whole.dtype))
