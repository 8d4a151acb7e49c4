"""Why a model type cannot be made small, or does not run: no fault of the rewrite, and not counted."""

from __future__ import annotations

from attnres_kernels.errors import AttnResError


class NotMadeError(AttnResError):
    """A model type of the sweep has no small model that runs by itself."""
