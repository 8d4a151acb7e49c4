"""Text of phase 2: one read, from phase 1's result and the open partial sum, with its neighbours fused (Algorithm 1).

One program holds whole rows in registers, so that the add before, the logit of the partial sum, the merge and the norm
behind are one pass over memory.
"""

from __future__ import annotations

from attnres_kernels.depth_attention.generated.specs import Phase2Spec
from attnres_kernels.depth_attention.generated.writing import lines, load


def phase_2_name(spec: Phase2Spec, kind: str = "phase_2") -> str:
    parts = [kind]
    if spec.adds:
        parts.append("add")
    if spec.norm:
        parts.append(f"{spec.norm}norm")
        parts += ["weight"] * spec.has_weight + ["bias"] * spec.has_bias
        parts += ["value"] * spec.returns_value
    return "_".join(parts)


def phase_2_text(spec: Phase2Spec) -> str:
    """The depth-attended value ``[rows, width]``, normed and not, and the new partial sum, as the spec says.

    statistics ``[3 or 5, rows]`` keeps for the backward, per token: weight of the partial sum, its logit, its inverse
    RMS; with a norm behind also mean and inverse deviation of the value.
    """
    arguments = [
        "inter",
        "log_sum",
        "partial",
        *(["branch"] if spec.adds else []),
        "key",
        *(["norm_weight"] if spec.has_weight else []),
        *(["norm_bias"] if spec.has_bias else []),
        *(["new_partial"] if spec.adds else []),
        *(["value"] if spec.returns_value else []),
        *(["normed"] if spec.norm else []),
        "statistics",
        "rows",
        "width",
        "partial_stride",
        *(["branch_stride"] if spec.adds else []),
    ]
    body = [load("partial", "partial_stride", "state")]
    if spec.adds:
        body += [
            load("branch", "branch_stride", "added"),
            "# The sum is rounded before it is read, as it is where the add is a kernel of its own.",
            "rounded = (state + added).to(new_partial.dtype.element_ty)",
            "tl.store(new_partial + at, rounded, mask=inside)",
            "state = rounded.to(tl.float32)",
        ]
    body += [
        "key_row = tl.load(key + column, mask=is_column, other=0.0)",
        "inverse_rms = tl.rsqrt(tl.sum(state * state, axis=1) / width + eps)",
        "logit = tl.sum(state * key_row[None, :], axis=1) * inverse_rms",
        "weight = tl.sigmoid(logit - tl.load(log_sum + row, mask=is_row, other=0.0))",
        load("inter", "width", "earlier"),
        "merged = (earlier + weight[:, None] * (state - earlier)) * factor",
        "tl.store(statistics + row, weight, mask=is_row)",
        "tl.store(statistics + rows + row, logit, mask=is_row)",
        "tl.store(statistics + 2 * rows + row, inverse_rms, mask=is_row)",
    ]
    if spec.returns_value:
        body.append("tl.store(value + at, merged.to(value.dtype.element_ty), mask=inside)")
    if spec.norm:
        body += _norm(spec)
    return f"""\
@triton.jit
def {phase_2_name(spec)}(
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


def _norm(spec: Phase2Spec) -> list[str]:
    if spec.norm == "layer":
        text = [
            "mean = tl.sum(merged, axis=1) / width",
            "centered = tl.where(inside, merged - mean[:, None], 0.0)",
        ]
    else:
        text = ["mean = tl.zeros([BLOCK_T], tl.float32)", "centered = merged"]
    text += [
        "inverse_deviation = tl.rsqrt(tl.sum(centered * centered, axis=1) / width + norm_eps)",
        "tl.store(statistics + 3 * rows + row, mean, mask=is_row)",
        "tl.store(statistics + 4 * rows + row, inverse_deviation, mask=is_row)",
        "out = centered * inverse_deviation[:, None]",
    ]
    if spec.has_weight:
        text.append("out *= tl.load(norm_weight + column, mask=is_column, other=0.0).to(tl.float32)[None, :]")
    if spec.has_bias:
        text.append("out += tl.load(norm_bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]")
    text.append("tl.store(normed + at, out.to(normed.dtype.element_ty), mask=inside)")
    return text
