#!/usr/bin/env bash
# torch 2.13.0 (CPU): a disabled autocast is an error on the device of a tensor without data.
#
# Code that turns autocast off around a part of a model writes torch.autocast(x.device.type, enabled=False). It asks for
# nothing, and works for "cpu" and "cuda" on a machine without a GPU. For "meta", the device on which models are built
# and counted without data, it raises a RuntimeError whose text names neither the device nor autocast.
#
# Output seen:
#   torch 2.13.0 cpu: entered
#   torch 2.13.0 meta: RuntimeError: unsupported scalarType
# Exits with 1 if either line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON' | tee "$folder/seen"
import torch

version = torch.__version__.partition("+")[0]
for device in ("cpu", "meta"):
    x = torch.ones(2, device=device)
    try:
        with torch.autocast(x.device.type, enabled=False):
            x + x
        print(f"torch {version} {device}: entered")
    except RuntimeError as error:
        print(f"torch {version} {device}: RuntimeError: {str(error).splitlines()[0]}")
PYTHON
printf '%s\n' "torch 2.13.0 cpu: entered" "torch 2.13.0 meta: RuntimeError: unsupported scalarType" | diff - "$folder/seen"
