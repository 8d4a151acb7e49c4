"""The version of torch: a warning under one that is untested, once."""

from __future__ import annotations

import warnings

import pytest
import torch

from attnres_passes.torch_private.version import torch_version, warn_if_untested


@pytest.mark.parametrize(
    ("text", "version", "tested"),
    [
        ("2.10.9", (2, 10), False),
        ("2.11.0", (2, 11), True),
        ("2.13.1+cu128", (2, 13), True),
        ("2.14.0a0+git1234567", (2, 14), False),
        ("3.0.0.dev20300101", (3, 0), False),
    ],
)
def test_untested_torch_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, text: str, version: tuple[int, int], tested: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", text)
    warn_if_untested.cache_clear()
    assert torch_version() == version
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_untested()
        warn_if_untested()
    said = [str(warning.message) for warning in caught]
    assert len(said) == (0 if tested else 1)
    assert all(f"torch {text} is untested, 2.11 to 2.13 are; " in message for message in said)
