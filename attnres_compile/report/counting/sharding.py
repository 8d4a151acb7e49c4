"""What FSDP2 sends and keeps of a model: its parameters by units, each a layer or what no layer holds.

A parameter is cut along its first dimension into as many parts as there are ranks, the last ones padded, and the parts
of a unit travel together. Nothing is executed: sizes of parameters say it all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from attnres_compile.model.parameters import AttnResParameters
from attnres_compile.report.parallel import ParallelError
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.provenance import relative_path

ADAMW_COPIES = 4
"""Of each trained parameter: itself, its gradient, and AdamW's two moments."""

Named = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Unit:
    """One ``fully_shard``. shard_bytes: of a rank, with padding; trained_bytes: of the parameters that are trained."""

    name: str
    shard_bytes: int
    trained_bytes: int
    is_root: bool


@dataclass(frozen=True)
class Sharded:
    """What one model sends in a step, and keeps, on one rank; bytes that the rank sends, and as many that it receives.

    gathers, reductions: collectives; gathered, reduced, kept: bytes.
    """

    gathers: int
    gathered: int
    reductions: int
    reduced: int
    kept: int


def sharded(parameters: Named, layers: Sequence[str], ranks: int) -> Sharded:
    """Count a step of a model, forward and backward, every layer a unit and all else the model's own.

    A layer is gathered before its forward and again before its backward; what the model itself holds is gathered once,
    as ``fully_shard`` does by default. Gradients are scattered once.

    Args:
        parameters: of the model, with their paths.
        layers: paths of the modules that are units.
        ranks: that share each parameter.

    Raises:
        ParallelError: a parameter has no dimension to cut.
    """
    units = _units(parameters, layers, ranks)
    others = ranks - 1
    passes = [(unit, 1 if unit.is_root else 2) for unit in units if unit.shard_bytes]
    return Sharded(
        gathers=sum(number for _, number in passes),
        gathered=others * sum(number * unit.shard_bytes for unit, number in passes),
        reductions=sum(1 for unit in units if unit.trained_bytes),
        reduced=others * sum(unit.trained_bytes for unit in units),
        kept=sum(unit.shard_bytes + (ADAMW_COPIES - 1) * unit.trained_bytes for unit in units),
    )


def added_parameters(plan: Plan, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What ``prepare`` would register on a model, without data."""
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    dtype = torch.get_default_dtype() if first is None else first.dtype
    return [
        (f"attnres.{name}", parameter)
        for name, parameter in AttnResParameters(plan, dtype, torch.device("meta")).named_parameters()
    ]


def _units(parameters: Iterable[tuple[str, nn.Parameter]], layers: Sequence[str], ranks: int) -> list[Unit]:
    held: dict[str, list[nn.Parameter]] = {name: [] for name in (*layers, "")}
    for name, parameter in parameters:
        if parameter.ndim == 0:
            raise ParallelError(
                f"the parameter {name} is a scalar, and fully_shard cuts none: give it a dimension, or leave fsdp out."
            )
        held[_unit_of(relative_path(name), layers)].append(parameter)
    return [
        Unit(
            name or "the model",
            sum(_shard_bytes(one, ranks) for one in of_unit),
            sum(_shard_bytes(one, ranks) for one in of_unit if one.requires_grad),
            not name,
        )
        for name, of_unit in held.items()
    ]


def _unit_of(path: str, layers: Sequence[str]) -> str:
    return next((layer for layer in layers if path.startswith(f"{layer}.")), "")


def _shard_bytes(parameter: nn.Parameter, ranks: int) -> int:
    first, *rest = parameter.shape
    return math.ceil(first / ranks) * math.prod(rest) * parameter.element_size()
