"""``plain``: the plain model, on purpose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from attnres_compile.model.parameters import require_parameters


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Run a prepared model without its depth attention, for as long as the context is open.

    Calls inside compute what the model computed before ``prepare``: in eager if it is not compiled, else in graphs of
    its own, which Dynamo keeps beside the rewritten ones. ``status`` counts them apart. Contexts can be nested; all
    threads that call the model see them.

    Args:
        model: prepared, or a wrapper around one prepared model.

    Raises:
        NotPreparedError.
    """
    calls = require_parameters(model).calls
    before = calls.on_purpose
    calls.on_purpose = True
    try:
        yield
    finally:
        calls.on_purpose = before
