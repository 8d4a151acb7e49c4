"""What can go wrong, one class per mistake; every message says what to do, and names its section of docs/errors.md.

``AttnResError`` is the base of all. Raised inside a compilation, they reach the caller as themselves and as torch's
``BackendCompilerFailed`` at once, so that either can be caught.
"""

from __future__ import annotations

from attnres_kernels.errors import AttnResError as AttnResError
from attnres_passes.ir.config import ConfigError as ConfigError
from attnres_passes.ir.plan import Decline


class CaptureError(AttnResError):
    """Dynamo could not capture the model on the example inputs."""


class EmptyBatchError(CaptureError, ValueError):
    """The example inputs hold no element, so that there is nothing to analyse or compare."""


class NoStreamError(AttnResError):
    """No residual stream of the model can be rewritten. declined: what was found, and why not."""

    def __init__(self, declined: tuple[Decline, ...], note: str = "") -> None:
        self.declined = declined
        found = "\n".join(f"  - {decline}" for decline in declined)
        super().__init__(
            f"no residual stream can be rewritten{note}:\n{found}\n"
            'Do as said above, or pass on_decline="warn" to run the model as it is.'
        )


class GraphBreakError(AttnResError):
    """A graph break cuts a residual stream, so that no graph holds all of it.

    Raised in ``capture/`` (by what looks at graphs one by one), ``compile/matching.py`` (a prepared model) and
    ``pipelines/build.py``.
    """


class BorderError(AttnResError):
    """A residual stream crosses from one compiled part of a model to the next where its sources cannot follow."""


class PartOfModelError(AttnResError):
    """A part of a model that was not prepared is compiled on its own, and its residual stream goes on outside."""


class StalePlanError(AttnResError):
    """A graph of a prepared model does not hold the streams that were planned."""


class NotInForceError(AttnResError):
    """A prepared model was about to run plain: its own forward, or a graph without its rewrite.

    Raised by the guard at the model (``model/in_force/``); the message says what ran instead, and how to mend it.
    """


class PartOfPreparedModelError(NotInForceError):
    """A module inside a prepared model is compiled on its own, and not the model."""


class AlreadyPreparedError(AttnResError):
    """The model was prepared before, with another plan."""


class NotPreparedError(AttnResError):
    """The model has no AttnRes parameters."""


class RegistrationError(AttnResError):
    """The parameters of the reads cannot be registered on the model."""


class OptimizerError(AttnResError):
    """An optimizer steps the model without its AttnRes parameters."""


class RecordingError(AttnResError):
    """Depth weights cannot be recorded, read or drawn as asked."""


class SavedStateError(AttnResError):
    """A directory does not hold AttnRes parameters that fit the model."""


class WeightsLeftOutError(AttnResError):
    """A checkpoint holds AttnRes parameters, and the model was loaded from it without them.

    Found by ``prepare`` and by the first compiled call, which would put new ones in their place
    (``model/left_out_weights.py``).
    """


class ExportError(AttnResError):
    """The AttnRes parameters mean something else in the layout that they are to be written in."""
