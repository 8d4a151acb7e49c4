"""Text of phase 1: all reads of a block over its completed blocks, each block loaded once (Algorithm 1)."""

from __future__ import annotations

from attnres_kernels.generation.specs import Phase1Spec
from attnres_kernels.generation.triton_text import ROW, along, lines, load, store


def phase_1_text(spec: Phase1Spec) -> str:
    """Outputs ``[rows, width]`` per read and log-sum-exps ``[reads, rows]`` from sources and their logits.

    The logits are known, and so is the softmax of every read: what is left are weighted sums, which tile freely along
    the width. A launch that ``continues`` merges its part with what the launch before wrote, as phase 2 does.
    """
    sources, reads = range(spec.sources), range(spec.reads)
    arguments = [
        *(f"source_{i}" for i in sources),
        *(f"logits_{i}" for i in sources),
        *(f"output_{s}" for s in reads),
        *(["log_sums_before"] if spec.continues else []),
        "log_sums",
        "rows",
        "width",
        *(f"source_stride_{i}" for i in sources),
        *(f"logits_stride_{i}" for i in sources),
    ]
    body = [load(f"source_{i}", f"source_stride_{i}", f"value_{i}") for i in sources]
    for s in reads:
        body += _read(spec, s)
    name = f"phase_1_n{spec.sources}_s{spec.reads}{'_continued' if spec.continues else ''}"
    return f"""\
@triton.jit
def {name}(
    {", ".join(arguments)},
    BLOCK_D: tl.constexpr,
):
    {ROW}
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < width
    {lines(body, 4)}
"""


def _read(spec: Phase1Spec, s: int) -> list[str]:
    sources = range(spec.sources)
    text = [f"# read {s}"]
    text += [f"logit_{i} = tl.load(logits_{i} + {along(f'logits_stride_{i}')} + {s})" for i in sources]
    text += _softmax(spec.sources)
    text.append("out = weight_0 * value_0")
    text += [f"out += weight_{i} * value_{i}" for i in sources[1:]]
    if spec.continues:
        text += [
            f"log_sum_before = tl.load(log_sums_before + {s} * rows + row)",
            load(f"output_{s}", "width", "before"),
            "share = tl.sigmoid(log_sum - log_sum_before)",
            "out = before + share * (out - before)",
            "largest = tl.maximum(log_sum, log_sum_before)",
            "log_sum = largest + tl.log(tl.exp(log_sum - largest) + tl.exp(log_sum_before - largest))",
        ]
    text += [
        store(f"output_{s}", "out"),
        f"tl.store(log_sums + {s} * rows + row, log_sum, mask=tl.program_id(1) == 0)",
    ]
    return text


def _softmax(sources: int) -> list[str]:
    """From ``logit_i`` to ``weight_i``, which sum to one, and ``log_sum``."""
    text = ["largest = logit_0"]
    text += [f"largest = tl.maximum(largest, logit_{i})" for i in range(1, sources)]
    text += [f"weight_{i} = tl.exp(logit_{i} - largest)" for i in range(sources)]
    text.append(f"total = {' + '.join(f'weight_{i}' for i in range(sources))}")
    text += [f"weight_{i} = weight_{i} / total" for i in range(sources)]
    text.append("log_sum = largest + tl.log(total)")
    return text
