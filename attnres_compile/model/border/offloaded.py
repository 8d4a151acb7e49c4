"""Parameters of reads that have no data while the model runs, since something has offloaded them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attnres_compile.model.errors import StalePlanError
from attnres_passes.ir.read_id import ReadParameter

if TYPE_CHECKING:
    from attnres_compile.model.parameters import AttnResParameters


def check_loaded(
    added: AttnResParameters, parameters: Sequence[ReadParameter], values: Sequence[Tensor], beside: Iterable[Any]
) -> None:
    """Check that what reads are about to use has data, if anything else has: operators take a mix, and give garbage.

    Args:
        added: of the model.
        parameters: that are used.
        values: of them.
        beside: what they are used with.

    Raises:
        StalePlanError: one of them has none.
    """
    without = next((one for one, value in zip(parameters, values, strict=True) if value.is_meta), None)
    if without is None or not any(isinstance(value, Tensor) and not value.is_meta for value in beside):
        return
    raise StalePlanError(
        f"attnres.{added.path(without.read)} ({without.name}) has no data (meta device), and the model runs "
        "with data. What offloads parameters layer by layer (accelerate's cpu_offload, device_map) brings them back "
        "for the forward of the module that holds them, and reads use them elsewhere. Prepare the model before it is "
        "offloaded, and keep its AttnRes parameters loaded: "
        "accelerate.hooks.remove_hook_from_module(model.attnres, recurse=True)."
    )
