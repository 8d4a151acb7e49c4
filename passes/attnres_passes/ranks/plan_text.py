"""A pipeline plan as text: a table of the chunks, and a picture of which block travels on which hop."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from attnres_passes.ranks.transfer_cost import transfer_cost
from attnres_passes.ranks.transfers import OPEN, ChunkPlan, Key, StagePlan

SENT, HAD, LOCAL = "#", "-", "="


def stage_table(plan: StagePlan) -> str:
    """One row per chunk: its rank and sublayers, and the sources that arrive, are cached, made, sent and kept."""
    rows = [
        [
            chunk.index,
            chunk.rank,
            _sublayers(plan, chunk),
            keys_text(chunk.arrives),
            keys_text(chunk.cached),
            keys_text(chunk.produced),
            keys_text(chunk.sends),
            keys_text(chunk.keeps),
        ]
        for chunk in plan.chunks
    ]
    headers = ["chunk", "rank", "sublayers", "arrives", "cached", "produced", "sends", "keeps"]
    layout = plan.layout
    head = (
        f"{layout.ranks} ranks x {layout.virtual} chunks, {layout.order} order, {plan.transfer} transfer, "
        f"{plan.writes} sublayers in blocks of {plan.block_size}, plan {plan.digest}"
    )
    return f"{head}\n{tabulate(rows, headers=headers, disable_numparse=True)}"


def stage_picture(plan: StagePlan) -> str:
    """One row per source, one column per hop: sent (#), at the receiving rank already (-), or handed over there (=)."""
    hops = plan.chunks[1:]
    headers = ["", *(f"{chunk.index - 1}>{chunk.index}" for chunk in hops)]
    ranks = ["ranks", *(f"{plan.chunks[chunk.index - 1].rank}>{chunk.rank}" for chunk in hops)]
    keys: list[Key] = sorted({key for chunk in hops for key in chunk.needed if key != OPEN})
    if any(OPEN in chunk.arrives for chunk in hops):
        keys.append(OPEN)
    rows = [[key_text(key), *(_mark(chunk, key) for chunk in hops)] for key in keys]
    units = ["units sent", *map(str, transfer_cost(plan).hop_units)]
    legend = f"{SENT} sent   {HAD} the receiving rank has it   {LOCAL} handed over on one rank, nothing is sent"
    return f"{tabulate([ranks, *rows, units], headers=headers, disable_numparse=True)}\n{legend}"


def key_text(key: Key) -> str:
    """``b3`` for block 3, ``open`` for the open partial sum."""
    return OPEN if key == OPEN else f"b{key}"


def keys_text(keys: Sequence[Key]) -> str:
    """Keys with runs of consecutive blocks drawn together: ``b0-b3 open``."""
    runs: list[list[Key]] = []
    for key in keys:
        last = runs[-1][-1] if runs else OPEN
        if key != OPEN and last != OPEN and key == last + 1:
            runs[-1].append(key)
        else:
            runs.append([key])
    return " ".join(key_text(run[0]) if len(run) == 1 else f"{key_text(run[0])}-{key_text(run[-1])}" for run in runs)


def _mark(chunk: ChunkPlan, key: Key) -> str:
    if key in chunk.arrives:
        return LOCAL if chunk.is_local else SENT
    return HAD if key in chunk.cached else ""


def _sublayers(plan: StagePlan, chunk: ChunkPlan) -> str:
    numbers = f"{chunk.begin + 1}-{chunk.end}" if chunk.end > chunk.begin + 1 else str(chunk.end)
    if not plan.sublayers:
        return numbers
    first, last = plan.sublayers[chunk.begin], plan.sublayers[chunk.end - 1]
    return f"{numbers}: {first}" + (f" .. {last}" if last != first else "")
