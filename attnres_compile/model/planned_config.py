"""What a plan fixes: options that may not change between preparing a model and compiling it."""

from __future__ import annotations

from collections.abc import Collection

from attnres_passes.ir.config import MECHANISM, AttnResConfig, ConfigError

FIXED_BY_PLAN = (
    *("num_blocks", "block_size", "scale", "stages", "allow_unnormed", "streams", "eps", "on_plain"),
    *MECHANISM,
)
"""Options that a prepared model has in its plan: those that decide what is computed, and what a plain run is."""


def check_agrees(given: AttnResConfig, planned: AttnResConfig, names: Collection[str]) -> None:
    """Check options that a user gives for a prepared model.

    Args:
        given: the config with them.
        planned: the config that the model was prepared with.
        names: the options that must be equal in both.

    Raises:
        ConfigError: one differs.
    """
    for name in names:
        if getattr(given, name) != getattr(planned, name):
            raise ConfigError(
                f"{name}={getattr(given, name)!r} contradicts the plan that the model was prepared with "
                f"({name}={getattr(planned, name)!r}); leave it out, or unprepare the model and prepare it anew."
            )
