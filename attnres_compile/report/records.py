"""What every JSON record begins with: its kind and version, the command, and the environment it was made in."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attnres_compile.report.comparison import MeasureError
from attnres_kernels.launch.load_triton import is_interpreted

_PACKAGES = ("attnres-compile", "torch", "triton", "transformers")


def record_head(kind: str, version: int, command: Sequence[str], device: torch.device | str) -> dict[str, Any]:
    """The first fields of a record.

    Args:
        kind: what ``check_record`` asks for.
        version: of the schema of this kind.
        command: the words of the command line, none for a record that a program made.
        device: that the work ran on.
    """
    return {
        "schema_version": version,
        "kind": kind,
        "command": " ".join(command),
        "environment": describe_environment(device),
    }


def check_record(record: Any, kind: str, *versions: int, command: str = "", remedy: str = "measure again") -> None:
    """Refuse a record that is not of ``kind`` or of none of ``versions``.

    Args:
        record: what was read from JSON.
        kind: of the record.
        versions: of its schema that can be read.
        command: that makes such records, ``attnres KIND`` if it is left out.
        remedy: what to do about another record.

    Raises:
        MeasureError: it is another record.
    """
    found = (record.get("kind"), record.get("schema_version")) if isinstance(record, dict) else ("", None)
    if found[0] != kind or found[1] not in versions:
        known = " or ".join(map(str, versions))
        raise MeasureError(
            f"this is no record of `{command or f'attnres {kind}'}` with schema_version {known}: {remedy}"
        )


def describe_environment(device: torch.device | str) -> dict[str, Any]:
    """Versions, device, threads and date, as plain data. A package that is not installed is None.

    ``triton_interpreter`` says whether Triton's kernels run in its interpreter, so that their times say nothing.
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


def device_name(device: torch.device | str) -> str:
    """The processor or accelerator by its own name, such as "NVIDIA H100 80GB HBM3"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({_processor()})" if device.type == "cpu" else device.type


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
