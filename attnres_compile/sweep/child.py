"""What a process of the sweep runs. Loaded once, in the process that all others are forked from."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from attnres_compile.api.verify import verify
from attnres_compile.sweep.judge import judge
from attnres_compile.sweep.names import make
from attnres_compile.sweep.record import ModelRecord

IS_TEMPLATE = "ATTNRES_SWEEP_TEMPLATE"
"""Is set in the environment of the process that others are forked from."""

_OF_NEARLY_EVERY_MODEL = (
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.masking_utils",
)


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


def _load_what_is_needed() -> None:
    """Dynamo and the passes load most of themselves at first use, which takes longer than a small model does."""
    for name in _OF_NEARLY_EVERY_MODEL:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)  # a fork has no thread but the one that forked
    verify(_Tiny(), (torch.randn(1, 2, 8),))


if IS_TEMPLATE in os.environ:
    _load_what_is_needed()


def run_child(library: str, name: str, limit_bytes: int, answer: Connection[ModelRecord, Any]) -> None:
    """Judge one model and send its record.

    Args:
        library, name: of the model.
        limit_bytes: of address space.
        answer: takes the record.
    """
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    torch.set_num_threads(1)
    # What a library prints is not the command's.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        record = judge(name, library, lambda: make(library, name))
    answer.send(record)
    answer.close()
