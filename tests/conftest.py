"""What every test starts from: seeded generators, nothing compiled before, and a say about missing GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides when it is imported, so this stands before anything that imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.browsing import browser  # noqa: F401  (a fixture)
from tests.zoo.torchvision_shim import ensure_torchvision_imports

ensure_torchvision_imports()


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Graphs compiled by one test must not serve another."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU, and torch sees none on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
