"""Texts for torch's structured trace."""

from __future__ import annotations

import logging

import pytest
import torch
from torch._logging._internal import LazyTraceHandler

from attnres_passes.torch_private.structured_trace import trace_artifact, trace_graph


def test_what_is_traced_is_made_only_for_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[tuple[str, dict[str, str], str]] = []
    monkeypatch.setattr(
        torch._logging,
        "trace_structured",
        lambda event, *, metadata_fn, payload_fn: traced.append((event, metadata_fn(), payload_fn())),
    )
    trace_artifact("plan", "json", lambda: "{}")
    trace_graph("after", lambda: "def forward(): ...")
    assert traced == [
        ("artifact", {"name": "plan", "encoding": "json"}, "{}"),
        ("graph_dump", {"name": "after"}, "def forward(): ..."),
    ]
    monkeypatch.delattr(torch._logging, "trace_structured")
    trace_graph("after", lambda: pytest.fail("made for nothing"))


def test_torch_traces_nothing_for_pytest() -> None:
    """It would describe every tensor and print every graph of every test; see tests/conftest.py."""
    torch.compile(torch.sin, backend="eager")(torch.ones(2))
    handlers = logging.getLogger("torch.__trace").handlers
    assert all(isinstance(handler, LazyTraceHandler) for handler in handlers), "only what TORCH_TRACE asks for"
