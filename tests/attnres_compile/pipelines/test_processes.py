"""Pipelines of 2 and 4 processes against a single process and the models written by hand."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attnres_passes.ranks.layout import StageLayout, StageOrder
from attnres_passes.ranks.transfer_cost import transfer_cost
from attnres_passes.ranks.transfers import StagePlan, plan_stages
from tests.attnres_compile.pipelines import worker
from tests.attnres_compile.pipelines.cases import CASES, CRASH, HANG, REPLICAS, Case
from tests.attnres_compile.pipelines.models import LENGTH, MODELS, WIDTH
from tests.processes import run_ranks

SEEN = 1e-6
"""An error that a sabotaged run must exceed; sound ones stay four orders of magnitude below."""

pytestmark = pytest.mark.processes


@cache
def results(ranks: int, only: str = "", ends: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
    """What each rank found, for all cases; the processes are started once. ends: exit codes to expect."""
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(worker.main, ranks, Path(folder), only, ends=ends)
        paths = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        return [json.loads(path.read_text()) for path in paths if path.exists()]


def of(case: Case, ranks: int) -> list[dict[str, Any]]:
    return [found[str(case)] for found in results(ranks)]


def cases(ranks: int, select: Any) -> list[Any]:
    return [pytest.param(ranks, case, id=f"P{ranks}-{case}") for case in CASES[ranks] if select(case)]


SOUND = [entry for ranks in CASES for entry in cases(ranks, lambda case: not (case.sabotage or case.raises))]
SABOTAGED = [entry for ranks in CASES for entry in cases(ranks, lambda case: bool(case.sabotage))]
REFUSED = [entry for ranks in CASES for entry in cases(ranks, lambda case: bool(case.raises))]


@pytest.mark.parametrize(("ranks", "case"), SOUND)
def test_equals_a_single_process(ranks: int, case: Case) -> None:
    """Loss, output, every gradient and, after the optimizer's steps, every parameter; in fp64."""
    found = of(case, ranks)
    for result in found:
        assert result["loss"] <= 1e-12
        assert result["output"] <= 1e-12
        assert result["gradient"] <= 1e-10
        assert result["parameter"] <= 1e-12
    model = MODELS[case.model].make(case.sublayers)
    names = [name for result in found for name in result["names"]]
    own = [name for name in names if not name.startswith("attnres.")]
    assert sorted(own) == sorted(name for name, _ in model.named_parameters()), "each parameter on exactly one rank"
    assert len(names) == len(set(names))
    assert sum(name.endswith(".query") for name in names) == case.sublayers


@pytest.mark.parametrize(("ranks", "case"), SOUND)
def test_bytes_handed_to_the_sends_are_the_plan(ranks: int, case: Case) -> None:
    """Hop by hop, forward and backward. A local hop hands over in memory and sends nothing."""
    found = of(case, ranks)
    assert len({result["plan"] for result in found}) == 1
    plan = plan_of(ranks, case)
    unit = worker.ROWS * LENGTH * WIDTH * 8
    sent = {place: count for result in found for place, count in result["sent"].items()}
    for hop, units in enumerate(transfer_cost(plan).hop_units):
        assert sent.get(f"fwd {hop}", 0) == units * unit
        assert sent.get(f"bwd {hop + 1}", 0) == units * unit


@pytest.mark.parametrize(("ranks", "case"), SOUND)
def test_kept_blocks_are_as_planned(ranks: int, case: Case) -> None:
    """Never more than the plan keeps, for all micro-batches at once; all of it where they are all under way."""
    for rank, result in enumerate(of(case, ranks)):
        kept = sum(len(chunk.keeps) for chunk in plan_of(ranks, case).of_rank(rank)) * case.microbatches
        assert result["peak"] <= kept
        assert (result["peak"] > 0) == (kept > 0)
        if case.schedule == "LoopedBFS":
            assert result["peak"] == kept, "all micro-batches are kept before the last chunk reads the first of them"


def plan_of(ranks: int, case: Case) -> StagePlan:
    """The plan, from the cuts that the processes chose and nothing else of theirs."""
    order = StageOrder.V if case.schedule in ("ZBVZeroBubble", "DualPipeV") else StageOrder.LOOP
    layout = StageLayout(ranks, case.virtual, order)
    return plan_stages(layout, of(case, ranks)[0]["cuts"], case.block_size, case.transfer)


@pytest.mark.parametrize(("ranks", "case"), SABOTAGED)
def test_a_fault_is_seen(ranks: int, case: Case) -> None:
    """Negative controls: the comparison above fails with any of them."""
    errors = [result[name] for result in of(case, ranks) for name in ("loss", "output", "gradient", "parameter")]
    assert max(errors) > SEEN


@pytest.mark.parametrize(("ranks", "case"), REFUSED)
def test_every_rank_is_told(ranks: int, case: Case) -> None:
    """A clear error on every rank, and the processes go on to the next case: nothing hangs."""
    raised = [result["raised"] for result in of(case, ranks)]
    assert all(case.raises in message for message in raised), raised
    if case.fault == "uneven batch":
        assert raised[0].startswith("PipelineBatchError")
        assert raised[1].startswith("PipelineMismatchError: rank 0 of the pipeline failed")


@pytest.mark.parametrize(("fault", "case"), [("crash", CRASH), ("hang", HANG)])
def test_a_rank_that_is_lost_is_named_on_the_others(fault: str, case: Case) -> None:
    """It dies, or it hangs for longer than the timeout of the process group."""
    (survivor,) = results(2, fault, (0, 3))
    assert survivor[str(case)]["raised"].startswith("PipelineMismatchError: rank 0 waited for another rank")


def test_replicas_of_a_pipeline() -> None:
    """DistributedDataParallel around the chunks of two pipelines: gradients are those of both batches."""
    for found in results(4, "replicas"):
        result = found[str(REPLICAS)]
        assert result["gradient"] <= 1e-10
        assert result["parameter"] <= 1e-12
        assert max(result["loss"], result["output"]) <= 1e-12
