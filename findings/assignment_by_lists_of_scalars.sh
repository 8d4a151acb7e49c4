#!/usr/bin/env bash
# torch 2.13.0 (CPU): an assignment indexed by lists of scalar tensors stops torch.compile, where it could break the graph.
#
# torch.where gives row and column numbers of unknown length. Listed one by one and used as an index of an assignment,
# they work in eager. Under torch.compile without fullgraph, with backend="eager", the call raises a TorchRuntimeError
# from the run of the assignment on fake tensors, though making the lists has broken the graph already. With the very
# tensors as the index it works. UDOP of transformers 5.23.0 is written so (modeling_udop.py:219), and cannot be compiled.
#
# Output seen:
#   eager: 0 of 6 left
#   compiled, tensors as the index: 0 of 6 left
#   compiled, lists as the index: TorchRuntimeError
# Exits with 1 if any line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" -W ignore - <<'PYTHON' 2>/dev/null | tee "$folder/seen"
import torch


def by_lists(x):
    chosen = torch.ones(x.shape, dtype=torch.bool)
    rows, columns = torch.where(x >= 0)
    chosen[list(rows), list(columns)] = False
    return chosen


def by_tensors(x):
    chosen = torch.ones(x.shape, dtype=torch.bool)
    rows, columns = torch.where(x >= 0)
    chosen[rows, columns] = False
    return chosen


def outcome(function):
    try:
        return f"{int(function(torch.zeros(2, 3)).sum())} of 6 left"
    except Exception as error:
        return type(error).__name__


print("eager:", outcome(by_lists))
print("compiled, tensors as the index:", outcome(torch.compile(by_tensors, backend="eager")))
print("compiled, lists as the index:", outcome(torch.compile(by_lists, backend="eager")))
PYTHON
diff "$folder/seen" - <<'SEEN'
eager: 0 of 6 left
compiled, tensors as the index: 0 of 6 left
compiled, lists as the index: TorchRuntimeError
SEEN
