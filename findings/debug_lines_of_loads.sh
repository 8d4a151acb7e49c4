#!/usr/bin/env bash
# Triton 3.9.0 (no GPU needed): debug information places loads at statements behind their own.
#
# A kernel loads two numbers and a tile, in statements 2 to 4 of its body, which has five. In the PTX of 3.7.1 each load
# has the line of its own statement. In that of 3.9.0 each number has the line of the statement behind it, and the load
# of the tile, for 128 bits, one behind the end of the kernel. A profiler, or a script that reads from machine code how
# wide the loads of a statement are, then finds them in the wrong one, or in none.
#
# Output seen (statement of the body: load):
#   triton 3.7.1 2: ld.global.b32, 3: ld.global.b32, 4: ld.global.v4.b32
#   triton 3.9.0 3: ld.global.b32, 4: ld.global.b32, 7: ld.global.v4.b32
# Exits with 1 if either line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/lines.py" <<'PYTHON'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def scale(x, out, factor, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(factor)
    b = tl.load(factor + 1)
    tile = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i, tile * a + b, mask=i < n)


kinds = {"x": "*fp32", "out": "*fp32", "factor": "*fp32", "n": "i32", "BLOCK": "constexpr"}
divisible = {(i,): [["tt.divisibility", 16]] for i in (0, 1, 3)}
source = ASTSource(fn=scale, signature=kinds, constexprs={"BLOCK": 512}, attrs=divisible)
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
found, line, header = [], 0, scale.fn.__code__.co_firstlineno + 1
for text in ptx.splitlines():
    if place := re.search(r"\.loc\s+\d+ (\d+) ", text):
        line = int(place[1])
    elif load := re.search(r"ld\.global\S*", text):
        found.append(f"{line - header}: {load[0]}")
print(f"triton {triton.__version__} {', '.join(found)}")
PYTHON
for version in 3.7.1 3.9.0; do
    "$folder/venv/bin/python" -m pip install --quiet "triton==$version"
    "$folder/venv/bin/python" -W ignore "$folder/lines.py" | tee -a "$folder/seen"
done
printf '%s\n' \
    "triton 3.7.1 2: ld.global.b32, 3: ld.global.b32, 4: ld.global.v4.b32" \
    "triton 3.9.0 3: ld.global.b32, 4: ld.global.b32, 7: ld.global.v4.b32" | diff - "$folder/seen"
