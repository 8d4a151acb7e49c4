"""Rows of a setting: what checkpoints keep and compute again, and what ranks send."""

from __future__ import annotations

from collections import Counter

from attnres_compile.report.counting.checkpoints import SettingCounts, Side
from attnres_compile.report.counting.execution import Sum
from attnres_compile.report.counting.sharding import Sharded
from attnres_compile.report.parallel import Checkpoint
from attnres_compile.report.rows.computation import missing, scaled
from attnres_compile.report.table import SAVED, TRAINING_FLOPS, OverheadRow

RECOMPUTED_FLOPS = "recomputed FLOPs"
_OF = {"layer": "layers checkpointed", "branch": "branches checkpointed"}
_KEPT = (
    "distinct storages in saved-tensor hooks over graphs whose {what} run under torch.utils.checkpoint, parameters and "
    "inputs left out"
)
_AGAIN = {
    "layer": "by torch.utils.flop_counter, of what torch.utils.checkpoint runs again: every layer, its reads included, "
    "up to the last tensor that its backward needs",
    "branch": "by torch.utils.flop_counter, of what torch.utils.checkpoint runs again: every sublayer from the output "
    "of its norm on, up to the last tensor that its backward needs; reads and norms are outside",
}
_RING = "bytes that a rank sends, and as many that it receives, as rings do"


def under(metric: str, checkpoint: Checkpoint) -> str:
    """The name of a row with what is checkpointed."""
    return metric if checkpoint == "none" else f"{metric}, {_OF[checkpoint]}"


def checkpoint_rows(found: SettingCounts) -> list[OverheadRow]:
    """Training FLOPs, those of them that are computed again, and what is kept, under checkpoints."""
    kind = found.parallel.checkpoint
    names = [(TRAINING_FLOPS, "FLOP"), (RECOMPUTED_FLOPS, "FLOP"), (SAVED, "B")]
    if found.plain is None or found.attnres is None:
        return [missing(under(name, kind), unit, found.not_counted) for name, unit in names]
    sides, lengths = (found.plain, found.attnres), found.lengths
    whole = "forward, backward, and what checkpoints compute again"
    what = f"{found.regions} {'layers' if kind == 'layer' else 'branches'}"
    kept = _KEPT.format(what=what) + (
        "; AttnRes: each partial sum at the border of a layer and each completed block once, and scalars of the reads"
        if kind == "layer"
        else "; AttnRes: the plain number less the states, plus what the reads keep outside, with phase 1 made again"
    )

    def flops(counters: tuple[Counter[str], Counter[str]], metric: str, note: str) -> OverheadRow:
        plain, attnres = (lengths.flops(one) for one in counters)
        return OverheadRow(under(metric, kind), plain, attnres, "FLOP", "counted", scaled(note, lengths, pairs=True))

    return [
        flops((sides[0].training, sides[1].training), TRAINING_FLOPS, whole),
        flops((sides[0].again, sides[1].again), RECOMPUTED_FLOPS, _AGAIN[kind]),
        OverheadRow(
            under(SAVED, kind),
            sides[0].saved_bytes * lengths.ratio,
            sides[1].saved_bytes * lengths.ratio,
            "B",
            "counted",
            scaled(kept, lengths),
        ),
    ]


def fsdp_rows(plain: Sharded, attnres: Sharded, ranks: int) -> list[OverheadRow]:
    """What FSDP2 sends in a step and keeps.

    Args:
        plain: of the plain model.
        attnres: with queries and key norms.
        ranks: that share each parameter.
    """
    name = f"FSDP2 over {ranks} ranks"
    gathers = (
        f"{_RING}; every layer is gathered before its forward and again before its backward, what the model itself "
        "holds, queries and key norms among it, once; parameters are padded to equal parts, and travel in their dtype"
    )
    reductions = f"{_RING}; gradients of every layer and of what the model itself holds, once a step, in their dtype"
    kept = "a rank's part of the parameters, their gradients and AdamW's two moments, all in the parameters' dtype"
    return [
        OverheadRow(f"{name}, all-gathers", plain.gathered, attnres.gathered, "B", "exact", gathers),
        OverheadRow(f"{name}, reduce-scatters", plain.reduced, attnres.reduced, "B", "exact", reductions),
        OverheadRow(f"{name}, parameters and optimizer of a rank", plain.kept, attnres.kept, "B", "exact", kept),
        OverheadRow(
            f"{name}, collectives",
            plain.gathers + plain.reductions,
            attnres.gathers + attnres.reductions,
            "",
            "exact",
            "all-gathers and reduce-scatters of a step",
            is_detail=True,
        ),
    ]


def tensor_parallel_rows(found: SettingCounts) -> list[OverheadRow]:
    """Activations and gradients that tensor-parallel ranks sum in a step."""
    ranks = found.parallel.tp
    name = f"tensor parallelism over {ranks} ranks"
    metrics = (f"{name}, all-reduces of activations", f"{name}, all-reduces")
    if found.plain is None or found.attnres is None:
        return [missing(metric, unit, found.not_counted) for metric, unit in zip(metrics, ("B", ""), strict=True)]
    note = (
        "a step: the output of every sublayer in the forward, again where a checkpoint runs it again, and the gradient "
        f"of every input of a sublayer; {_RING}; of an embedding and a head nothing is counted; AttnRes: reads are "
        "computed by every rank on the whole stream, with whole queries and key norms, whose gradients are the same on "
        "every rank, so that nothing more is summed; all other rows are of a model that is not cut"
    )
    sums = [_sums(side, found.gradients) for side in (found.plain, found.attnres)]
    plain, attnres = (2 * (ranks - 1) / ranks * one.bytes * found.lengths.ratio for one in sums)
    return [
        OverheadRow(metrics[0], plain, attnres, "B", "counted", scaled(note, found.lengths)),
        OverheadRow(metrics[1], sums[0].calls, sums[1].calls, "", "counted", note),
    ]


def _sums(side: Side, gradients: Sum) -> Sum:
    return side.summed[0] + side.summed[1] + gradients
