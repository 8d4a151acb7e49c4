"""Text of one read, with its neighbours fused: the add before and the norm behind (Algorithm 1).

The softmax is over parts: phase 1's output, whose logit is its log-sum-exp; completed blocks with known logits; and the
open partial sum, whose logit is computed. One program holds whole rows in registers, so that all of it is one pass over
memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from attnres_kernels.generation.specs import OwnLogitsReadBackwardSpec, ReadBackwardSpec, ReadSpec
from attnres_kernels.generation.triton_text import (
    ROW,
    along,
    lines,
    load,
    load_stored,
    load_vector,
    store,
    sum_together,
    with_additions,
)


def parts_of(spec: ReadSpec) -> list[str]:
    """Names of the parts; ``logit_<part>`` is the logit of each in the text."""
    return [
        *(["inter"] if spec.has_inter else []),
        *(f"source_{i}" for i in range(spec.sources)),
        *(["partial"] if spec.has_partial else []),
    ]


def earlier_arguments(spec: ReadSpec) -> tuple[list[str], list[str]]:
    """Pointers and strides of all parts but the partial sum."""
    sources = range(spec.sources)
    pointers = ["inter", "log_sum"] if spec.has_inter else []
    pointers += [*(f"source_{i}" for i in sources), *(f"logits_{i}" for i in sources)]
    return pointers, [*(f"source_stride_{i}" for i in sources), *(f"logits_stride_{i}" for i in sources)]


def load_logits(spec: ReadSpec) -> list[str]:
    """Logits of all parts but the partial sum."""
    text = ["logit_inter = tl.load(log_sum + row)"] if spec.has_inter else []
    return text + [
        f"logit_source_{i} = tl.load(logits_{i} + {along(f'logits_stride_{i}')})" for i in range(spec.sources)
    ]


def load_earlier(spec: ReadSpec) -> list[str]:
    """All parts but the partial sum, as they are stored."""
    text = [load_stored("inter", "width", "earlier")] if spec.has_inter else []
    return text + [load_stored(f"source_{i}", f"source_stride_{i}", f"block_{i}") for i in range(spec.sources)]


def merged_values(spec: ReadSpec) -> list[str]:
    """``merged``, the sum of all parts, each with its weight."""
    terms = ["weight_inter * earlier.to(tl.float32)"] if spec.has_inter else []
    terms += [f"weight_source_{i} * block_{i}.to(tl.float32)" for i in range(spec.sources)]
    terms += ["weight_partial * state"] if spec.has_partial else []
    return [f"merged = {terms[0]}", *(f"merged += {term}" for term in terms[1:])]


def read_name(spec: ReadSpec, kind: str = "read") -> str:
    """The name of a kernel, with what its read has.

    Args:
        spec: of the read.
        kind: of the kernel.
    """
    parts = [kind, *(["inter"] if spec.has_inter else []), *([f"n{spec.sources}"] if spec.sources else [])]
    if spec.has_partial:
        parts += ["add" if spec.adds else "partial"]
    if spec.norm:
        parts.append(f"{spec.norm}norm")
        parts += ["weight"] * spec.has_weight + ["bias"] * spec.has_bias
        parts += ["value"] * spec.returns_value
    return "_".join(parts)


def backward_name(spec: ReadBackwardSpec | OwnLogitsReadBackwardSpec, kind: str) -> str:
    """The name of the backward, with the outputs of the forward that have a gradient.

    Args:
        spec: of the backward.
        kind: of the kernel.
    """
    given = {"of_value": spec.has_value_grad, "of_normed": spec.has_normed_grad, "of_partial": spec.has_partial_grad}
    return "_".join([read_name(spec.forward, kind), *(name for name, has in given.items() if has)])


def read_text(spec: ReadSpec) -> str:
    """The depth-attended value ``[rows, width]``, normed and not, and the new partial sum, as the spec says.

    statistics ``[rows, 5]`` keeps for the backward, per token: the log-sum-exp over all parts; logit and inverse RMS of
    the partial sum; mean and inverse deviation of the value for the norm. Only what the spec has is written.
    """
    pointers, strides = earlier_arguments(spec)
    arguments = [
        *pointers,
        *(["partial", "key"] if spec.has_partial else []),
        *(["branch"] if spec.adds else []),
        *(["norm_weight"] if spec.has_weight else []),
        *(["norm_bias"] if spec.has_bias else []),
        *(["new_partial"] if spec.adds else []),
        *(["value"] if spec.returns_value else []),
        *(["normed"] if spec.norm else []),
        "statistics",
        "rows",
        "width",
        *strides,
        *(["partial_stride"] if spec.has_partial else []),
        *(["branch_stride"] if spec.adds else []),
    ]
    # Everything is loaded before the first sum over the row, which no load is moved over: memory is waited for once.
    # Stores stand behind loads and sums, which do not wait for them; where they do, ptxas spills registers, too.
    body = [*(_load_partial(spec) if spec.has_partial else []), *load_earlier(spec), *load_logits(spec)]
    # As it is stored, too.
    for name, has in (("weight", spec.has_weight), ("bias", spec.has_bias)):
        body += [f"{name} = tl.load(norm_{name} + column, mask=inside, other=0.0)"] if has else []
    body += [*(_partial(spec) if spec.has_partial else []), *_softmax(parts_of(spec))]
    body += [store("new_partial", "rounded")] if spec.adds else []
    body += [*merged_values(spec), "merged = merged * factor"]
    kept = _KEPT_OF_PARTIAL if spec.has_partial else []
    if spec.returns_value:
        body.append(store("value", "merged"))
    body += _norm(spec, kept) if spec.norm else kept
    return with_additions(f"""\
@triton.jit
def {read_name(spec)}(
    {", ".join(arguments)},
    factor: tl.constexpr, eps: tl.constexpr, norm_eps: tl.constexpr, BLOCK_D: tl.constexpr,
):
    {ROW}
    column = tl.arange(0, BLOCK_D)
    inside = column < width
    {lines(body, 4)}
""")


def _load_partial(spec: ReadSpec) -> list[str]:
    """The partial sum, the branch and the key."""
    branch = [load("branch", "branch_stride", "added")] if spec.adds else []
    return [load("partial", "partial_stride", "state"), *branch, load_vector("key", "key_row")]


def _partial(spec: ReadSpec) -> list[str]:
    """``state``, the partial sum with the branch added, and its logit."""
    added = [
        "# The sum is rounded before it is read, as it is where the add is a kernel of its own.",
        "rounded = (state + added).to(new_partial.dtype.element_ty)",
        "state = rounded.to(tl.float32)",
    ]
    return [
        *(added if spec.adds else []),
        sum_together({"squares": "state * state", "product": "state * key_row"}),
        "inverse_rms = tl.rsqrt(squares / width + eps)",
        "logit_partial = product * inverse_rms",
    ]


_KEPT_OF_PARTIAL = [
    "tl.store(statistics + row * 5 + 1, logit_partial)",
    "tl.store(statistics + row * 5 + 2, inverse_rms)",
]


def _softmax(parts: list[str]) -> list[str]:
    """The weight of each part from the logits, and their log-sum-exp."""
    text = [f"largest = logit_{parts[0]}"]
    text += [f"largest = tl.maximum(largest, logit_{part})" for part in parts[1:]]
    text += [f"weight_{part} = tl.exp(logit_{part} - largest)" for part in parts]
    text.append(f"total = {' + '.join(f'weight_{part}' for part in parts)}")
    text.append("tl.store(statistics + row * 5, largest + tl.log(total))")
    return text + [f"weight_{part} = weight_{part} / total" for part in parts]


def _norm(spec: ReadSpec, kept: Sequence[str]) -> list[str]:
    """``normed``. kept: statements that store what the backward needs of the partial sum."""
    text = []
    if spec.norm == "layer":
        text += [
            "mean = tl.sum(merged) / width",
            "centered = tl.where(inside, merged - mean, 0.0)",
            "tl.store(statistics + row * 5 + 3, mean)",
        ]
    else:
        text.append("centered = merged")
    text += [
        "inverse_deviation = tl.rsqrt(tl.sum(centered * centered) / width + norm_eps)",
        "tl.store(statistics + row * 5 + 4, inverse_deviation)",
        "out = centered * inverse_deviation",
        *kept,
    ]
    if spec.has_weight:
        text.append("out *= weight.to(tl.float32)")
    if spec.has_bias:
        text.append("out += bias.to(tl.float32)")
    text.append(store("normed", "out"))
    return text
