"""The versions of torch and Triton: one warning under those that are untested, once."""

from __future__ import annotations

import warnings

import pytest
import torch

from attnres_passes.torch_private import version
from attnres_passes.torch_private.version import torch_version, triton_version, warn_if_untested


@pytest.mark.parametrize(
    ("torch_text", "triton_text", "said"),
    [
        ("2.10.9", "3.6.0", "torch 2.10.9 is untested, 2.11 to 2.15 are"),
        ("2.11.0", "3.6.0", ""),
        ("2.15.1+cu128", "3.9.0", ""),
        ("2.13.0+cpu", None, ""),
        ("2.16.0a0+git1234567", "3.9.0", "torch 2.16.0a0+git1234567 is untested, 2.11 to 2.15 are"),
        ("2.15.0", "3.10.0", "Triton 3.10.0 is untested, 3.6 to 3.9 are"),
        (
            "3.0.0.dev20300101",
            "4.0.0",
            "torch 3.0.0.dev20300101 is untested, 2.11 to 2.15 are; Triton 4.0.0 is untested, 3.6 to 3.9 are",
        ),
    ],
)
def test_untested_versions_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, torch_text: str, triton_text: str | None, said: str
) -> None:
    monkeypatch.setattr(torch, "__version__", torch_text)
    monkeypatch.setattr(version, "triton_version", lambda: triton_text)
    warn_if_untested.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_untested()
        warn_if_untested()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == bool(said)
    for message in messages:
        assert message.startswith(f"attnres: {said}. ")
        assert "\n" not in message
        assert "verify, and a pipeline against a single process" in message


def test_versions_are_those_installed() -> None:
    assert torch.__version__.startswith("{}.{}.".format(*torch_version()))
    triton = pytest.importorskip("triton")
    assert triton_version() == triton.__version__
