"""The compiled graph at run time: the model's own arguments, and the parameters of the reads behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnres_compile.errors import StalePlanError
from attnres_compile.parameters import AttnResParameters
from attnres_passes.rewrite import ParameterSlot


class CompiledGraph:
    """Calls what the inner compiler made.

    Parameters are looked up at every call, so that loading, moving and sharding them works as for any other
    parameter. Dynamo has no guards on them; what a guard would check is checked here.
    """

    def __init__(
        self, compiled: Callable[..., Any], parameters: AttnResParameters, slots: tuple[ParameterSlot, ...]
    ) -> None:
        self.compiled, self.parameters, self.slots = compiled, parameters, slots
        self.compiled_for = [_signature(parameters.slot(slot)) for slot in slots]

    def __call__(self, *args: Any) -> Any:
        added = [self.parameters.slot(slot) for slot in self.slots]
        for slot, parameter, signature in zip(self.slots, added, self.compiled_for, strict=True):
            if _signature(parameter) != signature:
                raise StalePlanError(
                    f"attnres.streams.{slot.stream}.reads.{slot.read} ({slot.name}) has changed its dtype, device or "
                    "requires_grad since the model was compiled, and the rest of the model has not; change them "
                    "together, or call torch.compiler.reset() to compile again."
                )
        return self.compiled(*args, *added)


def _signature(parameter: Any) -> tuple[Any, ...]:
    return parameter.dtype, parameter.device, parameter.requires_grad
