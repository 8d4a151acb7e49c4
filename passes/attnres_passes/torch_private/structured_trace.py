"""Texts for torch's structured trace (``TORCH_TRACE``), which tlparse shows; they are made only when it is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch._logging


def trace_artifact(name: str, encoding: Literal["string", "json"], text: Callable[[], str]) -> None:
    """Add a text to torch's structured trace (``TORCH_TRACE``), which tlparse shows; it is made only when traced."""
    _trace("artifact", {"name": name, "encoding": encoding}, text)


def trace_graph(name: str, text: Callable[[], str]) -> None:
    """Add the text of a graph to torch's structured trace."""
    _trace("graph_dump", {"name": name}, text)


def _trace(event: str, metadata: dict[str, str], text: Callable[[], str]) -> None:
    trace_structured = getattr(torch._logging, "trace_structured", None)
    if trace_structured is not None:
        trace_structured(event, metadata_fn=lambda: metadata, payload_fn=text)
