"""Run by test_static.py in a process of its own: launches of a toy and of our kernels, recorded, as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.benchmarks.against_peers.work import Shape
from kernels.benchmarks.static.code import code_facts
from kernels.benchmarks.static.launches import recording
from kernels.benchmarks.static.table import static_record, thinned_out


def kernel(x, y, size: tl.constexpr):
    tl.store(y + tl.arange(0, size), tl.load(x + tl.arange(0, size)))


def rows(many, out, count, other, size: tl.constexpr, tile: tl.constexpr, twice: tl.constexpr):
    """As other people's: a tuple of tensors, an argument that is not specialized, and one that is 1."""
    columns = tl.arange(0, tile)
    total = tl.zeros([tile], tl.float32)
    for row in range(count):
        total += tl.load(many[0] + row * size + columns) * other
    if twice:
        total += tl.load(many[1] + columns)
    tl.store(out + tl.program_id(0) * size + columns, total)


peer = triton.autotune(
    [triton.Config({"tile": tile}, num_warps=4, num_stages=stages) for tile in (128, 256) for stages in (3, 2)],
    key=[],
    prune_configs_by={"early_config_prune": lambda configs, named, **_: [x for x in configs if x.kwargs["tile"] < 256]},
)(
    triton.heuristics({"twice": lambda named: named["tile"] == 128})(
        triton.jit(rows, do_not_specialize=["count"])  # type: ignore[call-overload]
    )
)
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
    peers = {}
    for count in (5, 9):
        peer[lambda named: (1024 // named["tile"], 2)]((x, y), z, count, 1, size=64)
        (launch,) = recorded.taken()
        peers[count] = [recorded.specializations[digest] for digest in launch.code]
    recorded.keeps = partial(thinned_out, also_warps=False)
    peer[(1,)]((x, y), z, 5, 1, size=64)
    thinned = [recorded.specializations[digest].chosen["num_stages"] for digest in recorded.taken()[0].code]
one = peers[5][0]
told = {
    "choices": launch.choices,
    "signature": one.signature,
    "constants": {one.kernel.arg_names[place[0]]: value for place, value in one.constants.items()},
    "divisible": [list(place) for place, attribute in one.attributes.items() if attribute],
    "options": [[x.options["num_warps"], x.options["num_stages"]] for x in peers[5]],
    "arguments": [(isinstance(x, int) and x > 2**32) or x for x in one.arguments],
    "grid": one.grid,
    "thinned": thinned,
    "facts": {count: code_facts(found[0]) for count, found in peers.items()},
}
kept = json.loads(Path(sys.argv[1]).read_text())
same_triton = kept["environment"]["versions"]["triton"] == triton.__version__
ours = static_record(shapes=[Shape("op", 8192, 4096, 8, 1, "bfloat16")], earlier=kept if same_triton else None)
print(json.dumps({"toy": toy, "peer": told, "ours": ours, "same_triton": same_triton}))
