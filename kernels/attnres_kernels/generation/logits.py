"""Text of the kernel for logits first: one completed block, all its later reads, in one pass over the block.

Where one program has no room for all reads, several share them: the first loads the block, the others find it in the
cache.
"""

from __future__ import annotations

from attnres_kernels.generation.specs import LogitsSpec
from attnres_kernels.generation.triton_text import lines


def logits_text(spec: LogitsSpec) -> str:
    """Logits ``[rows, reads]`` of a source ``[rows, width]`` for keys ``[reads, width]`` in fp32 (equation 2).

    With ``adds`` the source is the sum of ``partial`` and ``branch``, which is written to ``source``.
    """
    arguments = [*(["partial", "branch"] if spec.adds else []), "source", "keys", "logits", "rows", "width", "reads"]
    arguments += ["partial_stride", "branch_stride"] if spec.adds else ["source_stride"]
    if spec.adds:
        body = [
            "state = tl.load(partial + row[:, None] * partial_stride + column[None, :], mask=in_source, other=0.0)",
            "added = tl.load(branch + row[:, None] * branch_stride + column[None, :], mask=in_source, other=0.0)",
            "# The block is rounded before its logits are made, as it is where the add is a kernel of its own.",
            "loaded = (state.to(tl.float32) + added.to(tl.float32)).to(source.dtype.element_ty)",
            "is_written = (row < written_rows)[:, None] & (column < width)[None, :]",
            "tl.store(source + row[:, None] * width + column[None, :], loaded, mask=is_written)",
        ]
    else:
        body = ["loaded = tl.load(source + row[:, None] * source_stride + column[None, :], mask=in_source, other=0.0)"]
    body += [
        "key = tl.load(keys + read[:, None] * width + column[None, :], mask=in_keys, other=0.0)",
        "value = loaded.to(tl.float32)",
        "squares += tl.sum(value * value, axis=1)",
    ]
    if spec.splits_keys:
        body += [
            "high = key.to(tl.bfloat16)",
            "low = (key - high.to(tl.float32)).to(tl.bfloat16)",
            "products += tl.dot(loaded, tl.trans(high)) + tl.dot(loaded, tl.trans(low))",
        ]
    else:
        body.append('products += tl.dot(value, tl.trans(key), input_precision="ieee")')
    # A bound and not one more condition: Triton 3.9's interpreter makes integers of a mask and such a comparison.
    head = ["left = reads - first", *(["written_rows = tl.where(first == 0, rows, 0)"] if spec.adds else [])]
    return f"""\
@triton.jit
def logits{"_add" if spec.adds else ""}_{"split" if spec.splits_keys else "plain"}(
    {", ".join(arguments)},
    eps: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tl.program_id(1) * BLOCK_R
    keys += first * width
    logits += first
    {lines(head, 4)}
    read = tl.arange(0, BLOCK_R)
    products = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        in_source = (row < rows)[:, None] & (column < width)[None, :]
        in_keys = (read < left)[:, None] & (column < width)[None, :]
        {lines(body, 8)}
    inverse_rms = tl.rsqrt(squares / width + eps)
    out = products * inverse_rms[:, None]
    tl.store(logits + row[:, None] * reads + read[None, :], out, mask=(row < rows)[:, None] & (read < left)[None, :])
"""
