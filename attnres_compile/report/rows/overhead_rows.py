"""The counted rows of the overhead table, and what is said above and below it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from attnres_compile.report.counting.checkpoints import count_setting
from attnres_compile.report.counting.model_counts import ModelCounts, ModelGraphs, total
from attnres_compile.report.counting.places import layers_of
from attnres_compile.report.counting.sharding import added_parameters, sharded
from attnres_compile.report.parallel import Parallel
from attnres_compile.report.rows.computation import flop_rows, launch_rows, parameter_rows, saved_rows
from attnres_compile.report.rows.memory import pipeline_rows, prefill_rows, storage_rows
from attnres_compile.report.rows.traffic import io_rows
from attnres_compile.report.rows.training import checkpoint_rows, fsdp_rows, tensor_parallel_rows
from attnres_compile.report.table import OverheadRow
from attnres_passes.ranks.layout import StageLayout


@dataclass(frozen=True)
class SettingRows:
    """Rows of what is checkpointed, () if nothing is, and of what ranks send."""

    checkpoint: tuple[OverheadRow, ...]
    communication: tuple[OverheadRow, ...]


def setting_rows(graphs: ModelGraphs, counts: ModelCounts, model: nn.Module, parallel: Parallel) -> SettingRows:
    """Count a model under a setting.

    Args:
        graphs: of the model.
        counts: of the same graphs, where nothing is checkpointed or sharded.
        model: the plain one.
        parallel: what is checkpointed and sharded.

    Raises:
        ParallelError: it cannot be, of this model.
    """
    checkpoint: list[OverheadRow] = []
    communication: list[OverheadRow] = []
    if parallel.checkpoint != "none" or parallel.tp > 1:
        found = count_setting(graphs, counts, parallel)
        checkpoint += checkpoint_rows(found) if parallel.checkpoint != "none" else []
        communication += tensor_parallel_rows(found) if parallel.tp > 1 else []
    if parallel.fsdp > 1:
        layers, own = layers_of(counts.plan), list(model.named_parameters())
        added = added_parameters(counts.plan, model)
        plain, attnres = (sharded(parameters, layers, parallel.fsdp) for parameters in (own, own + added))
        communication += fsdp_rows(plain, attnres, parallel.fsdp)
    return SettingRows(tuple(checkpoint), tuple(communication))


def counted_rows(
    counts: ModelCounts, parameters: int, layout: StageLayout | None, setting: SettingRows | None = None
) -> list[OverheadRow]:
    """All rows that need no measuring, those for a reader in a hurry first.

    Args:
        counts: of the model.
        parameters: number of those of the plain model.
        layout: of a pipeline to count transfers for.
        setting: rows of what is checkpointed and sharded, in place of those of a model where nothing is.
    """
    forward, training = flop_rows(counts)
    is_checkpointed = setting is not None and bool(setting.checkpoint)
    return [
        *parameter_rows(counts.plan, parameters),
        forward,
        *([] if is_checkpointed else [training]),
        *io_rows(counts),
        *storage_rows(counts),
        *([] if is_checkpointed else saved_rows(counts)),
        *([] if setting is None else (*setting.checkpoint, *setting.communication)),
        *launch_rows(counts),
        *prefill_rows(counts),
        *([] if layout is None else pipeline_rows(counts, layout)),
    ]


def shape_lines(counts: ModelCounts) -> tuple[str, ...]:
    """One line per stream, and one on what the numbers are for."""
    lines = [
        f"{stream.name}: {len(stream.writes)} sublayers in {stream.num_blocks} blocks of {stream.block_size}, "
        f"width {stream.width:,}, up to {max((read.num_sources for read in stream.reads), default=1)} sources a read"
        for stream in counts.plan.streams
    ]
    tokens = sorted({round(shape.rows * counts.lengths.ratio) for shape in counts.shapes})
    if tokens:
        dtypes = " and ".join(sorted({shape.dtype for shape in counts.shapes}))
        lines.append(f"{' and '.join(f'{number:,}' for number in tokens)} tokens, {dtypes}")
    return tuple(lines)


def uncounted_calls(counts: ModelCounts) -> dict[str, int]:
    """Calls of operators without a FLOP formula in one training step, the most frequent first."""
    graphs = (*(counts.plain or ()), *(counts.residual_path or ()))
    return dict(total(graphs, "uncounted").most_common())
