"""The operations of a model that Python runs, for the analysis of one that Dynamo takes in as several graphs.

Which graphs Dynamo makes is of no account here: the model runs once as it is, on the example inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from attnres_compile.capture.capture import as_itself, buffers_restored, check_not_empty, does_not_run
from attnres_compile.model.parameters import unwrapped
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.eager.recorder import trace_run


def trace_eagerly(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> AtenTrace:
    """Run ``model(*args, **kwargs)`` once, uncompiled, and note its ATen operations.

    Its buffers and the random state are put back; what else its forward leaves behind, such as an entry in a cache
    that it is given, stays.

    Args:
        model: that is prepared or not; it runs plain.
        args, kwargs: example inputs.

    Raises:
        EmptyBatchError: an example tensor has no elements.
        CaptureError: the model does not run on them.
    """
    check_not_empty(args, kwargs or {})
    model = unwrapped(model)
    uncompiled = torch.compiler.set_stance("force_eager")
    with as_itself(model), buffers_restored(model), torch.random.fork_rng(), uncompiled:
        try:
            return trace_run(model, args, kwargs or {})
        except Exception as error:
            raise does_not_run(model, error) from error
