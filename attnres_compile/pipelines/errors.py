"""What can go wrong with a pipeline, one class per mistake; every message ends with what to do."""

from __future__ import annotations

from attnres_kernels.errors import AttnResError as AttnResError
from attnres_passes.ranks.layout import StageError as StageError


class PipelineSupportError(AttnResError, ValueError):
    """A schedule, compiler or torch version that pipelines do not support, or not together."""


class PipelineBatchError(AttnResError, ValueError):
    """The inputs of a step do not have the shapes or dtypes that the stages were made for."""


class PipelineMismatchError(AttnResError):
    """The ranks of a pipeline did not make the same plan, or do not call the same step."""
