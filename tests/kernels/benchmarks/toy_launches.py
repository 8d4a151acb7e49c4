"""Run by test_static.py in a process of its own: launches of a toy and of our kernels, recorded, as JSON."""

from __future__ import annotations

import json

import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.benchmarks.against_peers.work import Shape
from kernels.benchmarks.static.launches import recording
from kernels.benchmarks.static.table import static_record


def kernel(x, y, size: tl.constexpr):
    tl.store(y + tl.arange(0, size), tl.load(x + tl.arange(0, size)))


plain = triton.jit(kernel)
tuned = triton.autotune([triton.Config({}, num_warps=n) for n in (1, 2, 4)], [])(triton.jit(kernel))
with recording() as recorded, FakeTensorMode():
    x, y = torch.empty(16), torch.empty(16)
    assert x.is_cuda
    plain[(1,)](x, y, 16)
    plain[(1,)](x, x, size=16)
    tuned[(1,)]((x, y), y, 16)
    z = torch.stack([x, y]).view(-1)[2:]
    z.new_zeros(4)
    toy = [[one.name, one.nbytes, one.choices] for one in recorded.taken()]
ours = static_record(shapes=[Shape("op", 64, 512, 3, 1, "bfloat16")])
print(json.dumps({"toy": toy, "ours": ours}))
