"""What a measurement was made with: versions, processor, threads. Part of every stored result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attnres_kernels.launch.load_triton import is_interpreted

_PACKAGES = ("attnres-compile", "torch", "triton", "transformers")


def device_name(device: torch.device | str) -> str:
    """The processor or accelerator by its own name, such as "NVIDIA H100 80GB HBM3"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({_processor()})"
    return device.type


def describe_environment(device: torch.device | str) -> dict[str, Any]:
    """Versions, device, threads and date, as plain data. A package that is not installed is None.

    triton_interpreter: whether Triton's kernels run in its interpreter, so that their times say nothing.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "triton_interpreter": is_interpreted(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: package_version(name) for name in _PACKAGES},
    }


def package_version(package: str) -> str | None:
    """The version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
