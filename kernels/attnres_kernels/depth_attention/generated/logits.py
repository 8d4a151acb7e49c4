"""Text of the kernel for logits first: one completed block, all its later reads, in one pass over the block."""

from __future__ import annotations


def logits_text(splits_keys: bool) -> str:
    """Logits ``[rows, reads]`` of a source ``[rows, width]`` for keys ``[reads, width]`` in fp32 (equation 2).

    splits_keys: for bf16 sources, which are exact in bf16: each fp32 key is the sum of two bf16 parts, so that two
    products on tensor cores are as good as one in fp32.
    """
    if splits_keys:
        product = """\
        high = key.to(tl.bfloat16)
        low = (key - high.to(tl.float32)).to(tl.bfloat16)
        products += tl.dot(loaded, tl.trans(high)) + tl.dot(loaded, tl.trans(low))"""
    else:
        product = """\
        products += tl.dot(value, tl.trans(key), input_precision="ieee")"""
    return f"""\
@triton.jit
def source_logits_{"split" if splits_keys else "plain"}(
    source, keys, logits, rows, width, reads, source_stride,
    eps: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    read = tl.arange(0, BLOCK_R)
    products = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        in_source = (row < rows)[:, None] & (column < width)[None, :]
        in_keys = (read < reads)[:, None] & (column < width)[None, :]
        loaded = tl.load(source + row[:, None] * source_stride + column[None, :], mask=in_source, other=0.0)
        key = tl.load(keys + read[:, None] * width + column[None, :], mask=in_keys, other=0.0)
        value = loaded.to(tl.float32)
        squares += tl.sum(value * value, axis=1)
{product}
    inverse_rms = tl.rsqrt(squares / width + eps)
    out = products * inverse_rms[:, None]
    tl.store(logits + row[:, None] * reads + read[None, :], out, mask=(row < rows)[:, None] & (read < reads)[None, :])
"""
