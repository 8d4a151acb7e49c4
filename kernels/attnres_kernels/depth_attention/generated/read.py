"""Text of one read, with its neighbours fused: the add before and the norm behind (Algorithm 1).

The softmax is over parts: phase 1's output, whose logit is its log-sum-exp; completed blocks with known logits; and the
open partial sum, whose logit is computed. One program holds whole rows in registers, so that all of it is one pass over
memory.
"""

from __future__ import annotations

from attnres_kernels.depth_attention.generated.specs import ReadSpec
from attnres_kernels.depth_attention.generated.writing import lines, load


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
    text = ["logit_inter = tl.load(log_sum + row, mask=is_row, other=0.0)"] if spec.has_inter else []
    return text + [
        f"logit_source_{i} = tl.load(logits_{i} + row * logits_stride_{i}, mask=is_row, other=0.0)"
        for i in range(spec.sources)
    ]


def merged_values(spec: ReadSpec) -> list[str]:
    """``merged``, the weighted sum of all parts, from ``log_total`` and the logits; each part is loaded at its use."""
    text = [f"weight_{part} = tl.exp(logit_{part} - log_total)" for part in parts_of(spec)]
    terms = ["weight_partial[:, None] * state"] if spec.has_partial else []
    if spec.has_inter:
        text.append(load("inter", "width", "earlier"))
        terms.append("weight_inter[:, None] * earlier")
    for i in range(spec.sources):
        text.append(load(f"source_{i}", f"source_stride_{i}", f"block_{i}"))
        terms.append(f"weight_source_{i}[:, None] * block_{i}")
    return [*text, f"merged = {terms[0]}", *(f"merged += {term}" for term in terms[1:])]


def read_name(spec: ReadSpec, kind: str = "read") -> str:
    parts = [kind, *(["inter"] if spec.has_inter else []), *([f"n{spec.sources}"] if spec.sources else [])]
    if spec.has_partial:
        parts += ["add" if spec.adds else "partial"]
    if spec.norm:
        parts.append(f"{spec.norm}norm")
        parts += ["weight"] * spec.has_weight + ["bias"] * spec.has_bias
        parts += ["value"] * spec.returns_value
    return "_".join(parts)


def read_text(spec: ReadSpec) -> str:
    """The depth-attended value ``[rows, width]``, normed and not, and the new partial sum, as the spec says.

    statistics ``[5, rows]`` keeps for the backward, per token: the log-sum-exp over all parts; logit and inverse RMS of
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
    body = _partial(spec) if spec.has_partial else []
    body += [*load_logits(spec), *_total(parts_of(spec)), *merged_values(spec), "merged = merged * factor"]
    body.append("tl.store(statistics + row, log_total, mask=is_row)")
    if spec.returns_value:
        body.append("tl.store(value + at, merged.to(value.dtype.element_ty), mask=inside)")
    if spec.norm:
        body += _norm(spec)
    return f"""\
@triton.jit
def {read_name(spec)}(
    {", ".join(arguments)},
    factor: tl.constexpr, eps: tl.constexpr, norm_eps: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_D)
    is_row, is_column = row < rows, column < width
    inside = is_row[:, None] & is_column[None, :]
    at = row[:, None] * width + column[None, :]
    {lines(body, 4)}
"""


def _partial(spec: ReadSpec) -> list[str]:
    """``state``, the partial sum with the branch added, and its logit."""
    text = [load("partial", "partial_stride", "state")]
    if spec.adds:
        text += [
            load("branch", "branch_stride", "added"),
            "# The sum is rounded before it is read, as it is where the add is a kernel of its own.",
            "rounded = (state + added).to(new_partial.dtype.element_ty)",
            "tl.store(new_partial + at, rounded, mask=inside)",
            "state = rounded.to(tl.float32)",
        ]
    return [
        *text,
        "key_row = tl.load(key + column, mask=is_column, other=0.0)",
        "inverse_rms = tl.rsqrt(tl.sum(state * state, axis=1) / width + eps)",
        "logit_partial = tl.sum(state * key_row[None, :], axis=1) * inverse_rms",
        "tl.store(statistics + rows + row, logit_partial, mask=is_row)",
        "tl.store(statistics + 2 * rows + row, inverse_rms, mask=is_row)",
    ]


def _total(parts: list[str]) -> list[str]:
    """``log_total``, the log-sum-exp of the logits."""
    text = [f"largest = logit_{parts[0]}"]
    text += [f"largest = tl.maximum(largest, logit_{part})" for part in parts[1:]]
    text.append(f"log_total = largest + tl.log({' + '.join(f'tl.exp(logit_{part} - largest)' for part in parts)})")
    return text


def _norm(spec: ReadSpec) -> list[str]:
    if spec.norm == "layer":
        text = [
            "mean = tl.sum(merged, axis=1) / width",
            "centered = tl.where(inside, merged - mean[:, None], 0.0)",
            "tl.store(statistics + 3 * rows + row, mean, mask=is_row)",
        ]
    else:
        text = ["centered = merged"]
    text += [
        "inverse_deviation = tl.rsqrt(tl.sum(centered * centered, axis=1) / width + norm_eps)",
        "tl.store(statistics + 4 * rows + row, inverse_deviation, mask=is_row)",
        "out = centered * inverse_deviation[:, None]",
    ]
    if spec.has_weight:
        text.append("out *= tl.load(norm_weight + column, mask=is_column, other=0.0).to(tl.float32)[None, :]")
    if spec.has_bias:
        text.append("out += tl.load(norm_bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]")
    text.append("tl.store(normed + at, out.to(normed.dtype.element_ty), mask=inside)")
    return text
