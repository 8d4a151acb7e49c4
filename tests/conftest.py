"""What every test starts from: seeded generators, nothing compiled before, and a say about missing GPUs."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported, and for the processes that tests start as well: models are tiny, and waiting threads of
# several test processes slow each other down. Inductor then compiles here, and starts no pool that imports torch anew.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides when it is imported, so this stands before anything that imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.browsing import browser  # noqa: F401  (a fixture)
from tests.golden_text import (  # noqa: F401  (hooks)
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.zoo.torchvision_shim import ensure_torchvision_imports

ensure_torchvision_imports()


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Graphs compiled by one test must not serve another."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """pytest captures loggers that do not propagate, and torch makes its trace for whoever captures it: all graphs as
    text, every tensor described. It takes a tenth of the time of a test that compiles, and no test reads it.
    """
    trace = logging.getLogger("torch.__trace")
    for handler in [one for one in trace.handlers if type(one).__module__ == "_pytest.logging"]:
        trace.removeHandler(handler)


def pytest_collection_finish() -> None:
    """Tracing makes many objects that live briefly beside the many of torch and transformers, which stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn(items))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU, and torch sees none on this machine")
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # a folder of this name is a keyword, too
            item.add_marker(skip)


def _turn(items: list[pytest.Item]) -> Callable[[pytest.Item], int]:
    """Sorts files so that those who take them one after the other end together: long ones first, short ones last."""
    long = {item.path for item in items if "processes" in item.keywords}
    short = Path(__file__).parent / "passes"
    return lambda item: 0 if item.path in long else 2 if short in item.path.parents else 1
