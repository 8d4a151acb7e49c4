"""Rows on block representations: what is alive per token, in a long prefill, and what a pipeline sends."""

from __future__ import annotations

from attnres_compile.report.counting.model_counts import ModelCounts
from attnres_compile.report.table import OverheadRow
from attnres_passes.ranks.cuts import even_cuts
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.transfer_cost import TransferCost, transfer_cost
from attnres_passes.ranks.transfers import Transfer, plan_stages

_PREFILL_TOKENS = 128 * 1024
"""Tokens of the prompt in the paper's example (section 4.2)."""

_TENSOR_RANKS = (1, 2, 4, 8)


def sources_alive(counts: ModelCounts) -> list[int]:
    """Of each stream, the tensors alive at its deepest read: the root, completed blocks, the open partial sum."""
    return [max((read.num_sources for read in stream.reads), default=1) for stream in counts.plan.streams]


def storage_rows(counts: ModelCounts) -> list[OverheadRow]:
    """Bytes of residual state alive at the deepest read of each stream, per token."""
    note = "the state alone, against the root, the completed blocks and the open partial sum at the deepest read"
    rows = []
    for stream, shape, alive in zip(counts.plan.streams, counts.shapes, sources_alive(counts), strict=True):
        name = f", {stream.name}" if len(counts.plan.streams) > 1 else ""
        metric = f"stored block representations per token{name}"
        state = shape.row_bytes
        rows.append(OverheadRow(metric, state, alive * state, "B", "closed form", note, unit_size=state))
    return rows


def prefill_bytes(tokens: int, sources: int, row_bytes: int, ranks: int) -> float:
    """Per device, with the sources of a prompt sharded along its tokens (paper, section 4.2).

    Args:
        tokens: of the prompt.
        sources: kept of each token.
        row_bytes: of one source of one token.
        ranks: tensor-parallel ones, which share the tokens.
    """
    return tokens * sources * row_bytes / ranks


def prefill_rows(counts: ModelCounts) -> list[OverheadRow]:
    """Memory of a long prompt's sources per device, by the number of ranks that share its tokens."""
    note = (
        f"a prompt of {_PREFILL_TOKENS:,} tokens; the sources are sharded along the tokens over tensor-parallel ranks, "
        "as the state is on the plain side"
    )
    alive = list(zip(counts.shapes, sources_alive(counts), strict=True))
    return [
        OverheadRow(
            f"sources in a 128K prefill, {ranks} tensor-parallel rank{'s' if ranks > 1 else ''}",
            sum(prefill_bytes(_PREFILL_TOKENS, 1, shape.row_bytes, ranks) for shape, _ in alive),
            sum(prefill_bytes(_PREFILL_TOKENS, sources, shape.row_bytes, ranks) for shape, sources in alive),
            "B",
            "closed form",
            note,
            is_detail=True,
        )
        for ranks in _TENSOR_RANKS
    ]


def pipeline_rows(counts: ModelCounts, layout: StageLayout) -> list[OverheadRow]:
    """What the fullest hop and a whole step send, with all blocks on every hop, and without those that ranks keep.

    Args:
        counts: of the model.
        layout: of the pipeline.

    Raises:
        StageError: a stream has fewer sublayers than the layout has chunks.
    """
    rows = []
    for stream, shape in zip(counts.plan.streams, counts.shapes, strict=True):
        cuts = even_cuts(len(stream.writes), layout.chunks)
        unit = shape.row_bytes * shape.rows * counts.lengths.ratio
        name = f", {stream.name}" if len(counts.plan.streams) > 1 else ""
        hops = sum(not layout.is_local(chunk) for chunk in range(1, layout.chunks))
        for rule in Transfer:
            found_cost = transfer_cost(plan_stages(layout, cuts, stream.block_size, rule))
            rows += _transfer_rows(found_cost, f", {rule.value}{name}", unit, hops, layout)
    return rows


def _transfer_rows(sent: TransferCost, name: str, unit: float, hops: int, layout: StageLayout) -> list[OverheadRow]:
    note = (
        f"{layout.ranks} ranks with {layout.virtual} chunks each, equally many sublayers a chunk, the batch as one "
        "micro-batch; counted from the stage plan; plain: the state alone on every hop"
    )
    return [
        OverheadRow(f"pipeline, fullest hop{name}", unit if hops else 0.0, sent.peak * unit, "B", "counted", note),
        OverheadRow(f"pipeline, training step{name}", 2 * hops * unit, 2 * sent.units * unit, "B", "counted", note),
    ]
