#!/usr/bin/env bash
# torch 2.13.0 (CPU): an early return that is never taken decides whether Dynamo compiles a loop with a graph break.
#
# Behind a graph break Dynamo looks whether it is in a loop: whether an instruction from there on jumps back. It stops
# looking at the first return. So of a loop with a break in its body nothing is compiled, the whole function is skipped;
# with a return behind the break, in the same loop, the function is cut into four graphs, and all of them are compiled.
# Both give the same numbers, and neither says what happened unless TORCH_LOGS is set.
#
# Output seen:
#   torch 2.13.0 loop: 0 graphs
#   torch 2.13.0 loop_with_return: 4 graphs
# Exits with 1 if either line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
cat > "$folder/loops.py" <<'PYTHON'
import torch


def loop(x):
    for _ in range(3):
        x = x.sin()
        torch._dynamo.graph_break()
        x = x + 1
    return x


def loop_with_return(x):
    for _ in range(3):
        x = x.sin()
        torch._dynamo.graph_break()
        x = x + 1
        if x.dim() == 9:
            return x
    return x


version = torch.__version__.partition("+")[0]
for function in (loop, loop_with_return):
    torch.compiler.reset()
    graphs = []
    compiled = torch.compile(function, backend=lambda gm, _: graphs.append(gm) or gm.forward)
    assert torch.equal(compiled(torch.ones(2)), function(torch.ones(2)))
    print(f"torch {version} {function.__name__}: {len(graphs)} graphs")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/loops.py" | tee "$folder/seen"
printf '%s\n' "torch 2.13.0 loop: 0 graphs" "torch 2.13.0 loop_with_return: 4 graphs" | diff - "$folder/seen"
