#!/usr/bin/env bash
# Triton 3.9.0 (interpreter, CPU): a mask and a comparison of program_id together are no mask.
#
# (i < n) & (tl.program_id(0) == 0) is a block of booleans when it is compiled, and was one in the interpreter of 3.7.1.
# In that of 3.9.0 the comparison of two scalars is an integer; the two together are integers, which a store refuses. A
# bound that is chosen by tl.where, or an `if` around the store, is taken by both.
#
# Output seen:
#   triton 3.7.1 and: [0.0, 1.0, 2.0, 0.0]
#   triton 3.7.1 where: [0.0, 1.0, 2.0, 0.0]
#   triton 3.9.0 and: InterpreterError: ValueError('mask has unsupported dtype')
#   triton 3.9.0 where: [0.0, 1.0, 2.0, 0.0]
# Exits with 1 if a line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet numpy
cat > "$folder/masks.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def copy_and(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i, value, mask=(i < n) & (tl.program_id(0) == 0))


@triton.jit
def copy_where(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i, value, mask=i < tl.where(tl.program_id(0) == 0, n, 0))


for name, kernel in (("and", copy_and), ("where", copy_where)):
    out = torch.zeros(4)
    try:
        kernel[(2,)](torch.arange(4.0), out, 3, BLOCK=4)
        print(f"triton {triton.__version__} {name}: {out.tolist()}")
    except Exception as error:
        print(f"triton {triton.__version__} {name}: {type(error).__name__}: {error}")
PYTHON
for version in 3.7.1 3.9.0; do
    "$folder/venv/bin/python" -m pip install --quiet --no-deps "triton==$version"
    TRITON_INTERPRET=1 "$folder/venv/bin/python" -W ignore "$folder/masks.py" | tee -a "$folder/seen"
done
printf '%s\n' \
    "triton 3.7.1 and: [0.0, 1.0, 2.0, 0.0]" \
    "triton 3.7.1 where: [0.0, 1.0, 2.0, 0.0]" \
    "triton 3.9.0 and: InterpreterError: ValueError('mask has unsupported dtype')" \
    "triton 3.9.0 where: [0.0, 1.0, 2.0, 0.0]" | diff - "$folder/seen"
