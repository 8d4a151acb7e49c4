"""Small models of timm, with the values in ``timm_models.json``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import torch
from torch import nn

from attnres_compile.models.errors import MissingExtraError
from attnres_compile.sweep.making.small_model import SmallModel, Try, first_that_runs

_MODELS: dict[str, dict[str, Any]] = json.loads(
    resources.files(__package__).joinpath("timm_models.json").read_text(encoding="utf-8")
)


def model_names() -> list[str]:
    """The models of timm that the sweep takes: one or a few of each family."""
    return list(_MODELS)


def small_model(name: str) -> SmallModel:
    """A small model of timm.

    Args:
        name: one of ``model_names``.

    Raises:
        NotMadeError: it was not built, or does not run.
        MissingExtraError: timm is not installed.
    """
    values = dict(_MODELS[name])
    image = values.pop("image", 64)
    timm = _import_timm()

    def build() -> nn.Module:
        module: nn.Module = timm.create_model(name, num_classes=10, **values)
        return module

    def calls(_: nn.Module) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        yield (torch.randn(1, 3, image, image),), {}

    return first_that_runs([Try(", ".join(f"{key}={value}" for key, value in values.items()), build, calls)])


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"the models of timm cannot be swept ({type(error).__name__}: {error}): run "
            "`pip install 'attnres-compile[vision]'`, with a torchvision that fits the installed torch"
        ) from error
