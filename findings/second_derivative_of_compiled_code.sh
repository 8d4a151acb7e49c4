#!/usr/bin/env bash
# torch 2.13.0 (CPU): a second derivative through aot_eager says that the input was not used.
#
# Compiled code has no double backward, and an error says so for some functions. For others, torch.autograd.grad(..,
# create_graph=True) gives a gradient that requires one, and differentiating it fails with the message of an input that
# takes no part in the computation, whose advice, allow_unused=True, then gives None for a second derivative that is not
# zero.
#
# Output seen:
#   torch 2.13.0 eager: requires_grad=True, a second derivative that is not zero
#   torch 2.13.0 aot_eager: requires_grad=True, RuntimeError: The differentiated Tensor at index 0 appears to not have been used in the graph.
#   torch 2.13.0 aot_eager, allow_unused=True: None
# Exits with 1 if a line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
cat > "$folder/second.py" <<'PYTHON'
import torch


def function(x, weight):
    return (x @ weight).sin().sum()


version = torch.__version__.partition("+")[0]
torch.manual_seed(0)
x, weight = torch.randn(3, requires_grad=True), torch.randn(3, 3)
for name, called in (("eager", function), ("aot_eager", torch.compile(function, backend="aot_eager"))):
    (gradient,) = torch.autograd.grad(called(x, weight), x, create_graph=True)
    try:
        (second,) = torch.autograd.grad(gradient.sum(), x, retain_graph=True)
        assert second.abs().max() > 0
        said = "a second derivative that is not zero"
    except RuntimeError as error:
        said = f"RuntimeError: {str(error).partition(' Set ')[0]}"
    print(f"torch {version} {name}: requires_grad={gradient.requires_grad}, {said}")
(second,) = torch.autograd.grad(gradient.sum(), x, allow_unused=True)
print(f"torch {version} aot_eager, allow_unused=True: {second}")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/second.py" | tee "$folder/seen"
printf '%s\n' \
    "torch 2.13.0 eager: requires_grad=True, a second derivative that is not zero" \
    "torch 2.13.0 aot_eager: requires_grad=True, RuntimeError: The differentiated Tensor at index 0 appears to not have been used in the graph." \
    "torch 2.13.0 aot_eager, allow_unused=True: None" | diff - "$folder/seen"
