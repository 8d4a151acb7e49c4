"""What one call costs besides time: peak memory, and kernels launched.

A number that cannot be had is ``{"missing": reason}``, never 0.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnres_compile.models.example_inputs import first_line
from attnres_kernels.errors import AttnResError

_GRAPH_LAUNCHES = ("cudaGraphLaunch", "cuGraphLaunch", "hipGraphLaunch")


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers; a tied one counts once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def peak_memory(call: Callable[[], object], model: nn.Module, held: int, device: torch.device) -> dict[str, Any]:
    """Bytes at the peak of one call: of what ``model`` holds, and of the most that the call allocates beyond.

    So a second model on the device is not counted.

    Args:
        call: has been called before, or its compilation counts.
        model: whose gradients are dropped.
        held: bytes beside its parameters and buffers, such as those of a cache.
        device: that it is on.
    """
    if device.type != "cuda":
        return {"missing": f"torch counts no allocations on {device.type}"}
    own = model_bytes(model)
    # Gradients of an earlier step belong to the step, which drops them when it begins.
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    beyond = torch.cuda.max_memory_allocated(device) - before
    return {"model": own, "held": held, "step": beyond, "peak": own + held + beyond}


def count_launches(
    call: Callable[[], object], device: torch.device, before: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Kernels, copies and CUDA graphs that one call launches.

    Args:
        call: is called twice.
        device: that it runs on.
        before: is called before each of them, and not counted.
    """
    if device.type != "cuda":
        return {"missing": f"the profiler does not see the kernels that Inductor makes for {device.type}"}
    # As torch does it itself where graphs are on for the whole process: CUPTI does not survive graphs otherwise.
    os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    trace: dict[str, Any] = {}
    # The first profile of a process may miss what ran while it started.
    for _ in range(2):
        if before is not None:
            before()
        torch.cuda.synchronize(device)
        try:
            trace = _traced(call, device)
        except (torch.OutOfMemoryError, AttnResError):
            raise
        except (RuntimeError, ValueError) as error:
            return {"missing": f"the profiler failed ({type(error).__name__}: {first_line(error)})"}
    return launches_in(trace)


def _traced(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    return exported(profile)


def exported(profile: torch.profiler.profile) -> dict[str, Any]:
    """A finished profile as the JSON that chrome://tracing reads; its categories are the same in every torch."""
    with tempfile.TemporaryDirectory(prefix="attnres-profile-") as directory:
        path = Path(directory, "trace.json")
        profile.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return trace


def launches_in(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The launches in a trace of torch.profiler, by the categories of its events.

    A kernel inside of a replayed CUDA graph has an event of its own.
    """
    events = [event for event in trace.get("traceEvents", ()) if event.get("ph") == "X"]
    categories = [event.get("cat") for event in events]
    kernels = categories.count("kernel")
    if not kernels:
        return {"missing": "the profiler saw no kernel: the process may not be allowed to use CUPTI"}
    return {
        "kernels": kernels,
        "copies": categories.count("gpu_memcpy") + categories.count("gpu_memset"),
        "graphs": sum(str(event.get("name", "")).startswith(_GRAPH_LAUNCHES) for event in events),
    }
