"""What one read of the residual stream moves, per token, in units of `d` elements, `d` the stream's width.

Two conventions. The `paper_*` functions restate Table 1 of the paper: the sublayer's own input and output are
left out. All others count a read together with the residual add before it and the norm after it, because that
is the region a compiler fuses; they can be compared with each other and with a compiled PreNorm model.
"""

from collections.abc import Sequence


def standard_residual() -> float:
    """Fused add and norm: read the state and the branch, write the state and the normed value."""
    return 4.0


def naive(completed: int, has_partial: bool = True) -> float:
    """Stacked and unfused: add, stack, square mean, key product, weighted sum and norm are separate passes.

    The stack reads and writes every source; the three passes over it read it once each; the weighted sum
    writes one. The residual add moves three and the norm two.

    Args:
        completed: blocks that the read attends to.
        has_partial: whether it attends to an open partial sum, too.
    """
    sources = completed + int(has_partial)
    return 5.0 * sources + 1.0 + 3.0 + 2.0


def direct(completed: int) -> float:
    """One fused pass per read: the `completed` blocks, and the four of `standard_residual`.

    Exact when the logits of the completed blocks are known beforehand (logits first), which costs one further
    read of each block in all (`logits_first`), or made by the read itself.
    """
    return completed + 4.0


def two_phase(completed: int, reads: int) -> float:
    """Algorithm 1, fused: phase 1 reads the completed blocks once for all `reads` of a block.

    Phase 1 writes one partial output per read; phase 2 reads it, the partial sum and the branch, and writes
    the partial sum and the normed value.

    Args:
        completed: blocks that all reads of the block share.
        reads: of the block.

    Raises:
        ValueError: there are no reads.
    """
    if reads < 1:
        raise ValueError(f"a block has {reads} reads: pass at least 1")
    return completed / reads + 1.0 + 5.0


def logits_first() -> float:
    """The logits of one completed block for all its later reads: one further read of it."""
    return 1.0


LAUNCH_BYTES = 8 << 20
"""What one more kernel costs, as the bytes that a GPU moves meanwhile. An estimate: 2 to 3 us, the time of the smallest
reads that others report on an H100 (FlagGems, pull request 737), at 3 to 4 TB/s.
"""


def launch(tokens: int, width: int, itemsize: int) -> float:
    """What one more kernel costs, in units of `d` elements per token. With few tokens it is all that counts.

    Args:
        tokens: of the batch; none count as one.
        width: `d`, elements of a token.
        itemsize: bytes of an element.
    """
    return LAUNCH_BYTES / (max(tokens, 1) * width * itemsize)


PHASE_1_ON_CPU = 1_370_000
"""What a phase 1 on torch calls costs on a CPU beside what it moves, as elements that direct reads move meanwhile."""

TWO_PHASE_ON_CPU = 1.78
"""What an element costs there that two phases move, over one that direct reads move.

Both are from docs/benchmarks/schedules-cpu.json (`python -m kernels.benchmarks.cpu_schedules`), without gradients,
fp32, width 768, 12 sublayers in 4 blocks, one thread, processor time of a read: direct 99.8 us at 1 token and 827.7 us
at 256, two phases 412.6 us and 1789.7 us; 6.83 and 7.25 elements moved per read, token and column, and 5 phases.
Of 24 sublayers in 8 blocks, at 256 tokens, they foretell 0.53 for direct over two phases; measured is 0.47.
"""

MOST_TOKENS_ON_CPU = 256
"""As many as were measured."""


def two_phase_on_cpu(moved: float, phases: int, tokens: int, width: int) -> float:
    """What groups with a phase 1 cost on a CPU, in units of `d` elements per token that direct reads move.

    Args:
        moved: by all groups.
        phases: groups with a phase 1.
        tokens: of the batch; none count as one.
        width: `d`, elements of a token.
    """
    return TWO_PHASE_ON_CPU * moved + phases * PHASE_1_ON_CPU / (max(tokens, 1) * width)


def group(shared: int, completed: Sequence[int]) -> float:
    """All reads of a group: phase 1 over the shared blocks, and each read's further completed blocks in place.

    Of reads with one number of blocks it is `two_phase` or `direct` times their number.

    Args:
        shared: blocks that phase 1 goes over; without any, all are read in place.
        completed: blocks that each read attends to.
    """
    if shared == 0:
        return sum(direct(n) for n in completed)
    return shared + sum(direct(n - shared) + 2.0 for n in completed)


def paper_standard_residual() -> float:
    """Table 1, standard residual: two reads and one write."""
    return 3.0


def paper_mhc(streams: int, width: int) -> float:
    """Table 1, mHC: `(8m + 2) d + 2 m^2 + 4 m` elements, here over `d`.

    Args:
        streams: `m`.
        width: `d`.
    """
    return 8.0 * streams + 2.0 + (2.0 * streams**2 + 4.0 * streams) / width


def paper_full(block_size: int, num_blocks: int) -> float:
    """Table 1, Full AttnRes in the two-phase schedule with groups of `S` sublayers: `(S + N) d`.

    Args:
        block_size: `S`.
        num_blocks: `N`.
    """
    return float(block_size + num_blocks)


def paper_block(block_size: int, num_blocks: int) -> float:
    """Table 1, Block AttnRes in the two-phase schedule: `(N/S + 3) d` read and `2 d` written.

    Args:
        block_size: `S`.
        num_blocks: `N`.
    """
    return num_blocks / block_size + 5.0
