"""What a model costs under checkpoints: its graphs executed without data, each region by ``torch.utils.checkpoint``.

The plain graph is executed as it was captured. Where layers are checkpointed, reads are computed again with their
layer, so that the whole lowered graph is executed beside it; where branches are, reads stay outside, and the residual
path that the report counts without checkpoints is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.progress import stage
from attnres_compile.report.counting.execution import Counted, Sum, count
from attnres_compile.report.counting.model_counts import Lengths, ModelCounts, ModelGraphs, ResidualPath, total
from attnres_compile.report.counting.places import (
    Branch,
    Mark,
    Places,
    branch_regions,
    branches_of,
    last_product,
    layer_regions,
    norms_of,
)
from attnres_compile.report.counting.tensor_parallel import check_shares, gradients_summed
from attnres_compile.report.parallel import Parallel, ParallelError
from attnres_passes.inline.close_regions import close_regions
from attnres_passes.ir.regions import Region


@dataclass(frozen=True)
class Side:
    """One of the two models. saved_bytes: kept for the backward; again: FLOPs of what is run twice, among ``training``;
    summed: what tensor-parallel ranks sum, forward and again.
    """

    saved_bytes: float
    training: Counter[str]
    again: Counter[str]
    summed: tuple[Sum, Sum]


@dataclass(frozen=True)
class SettingCounts:
    """What was counted under a setting.

    plain, attnres: None where the model cannot be executed without data, or nothing wants a gradient, and
    ``not_counted`` says so; regions: checkpoints in a forward; gradients: of inputs of sublayers, which tensor-parallel
    ranks sum.
    """

    parallel: Parallel
    plain: Side | None
    attnres: Side | None
    not_counted: str
    regions: int
    gradients: Sum
    lengths: Lengths


def count_setting(graphs: ModelGraphs, counts: ModelCounts, parallel: Parallel) -> SettingCounts:
    """Execute the graphs of a model under checkpoints.

    Args:
        graphs: of the model.
        counts: of the same graphs without checkpoints.
        parallel: says what is checkpointed.

    Raises:
        ParallelError: no module holds a layer, nothing is between a read and a write, ranks cannot share a sublayer,
            or they would share one with several queries.
    """
    analysed = [graph for graph in graphs.graphs if graph.analysis.plan.streams]
    branches = [branches_of(graph) for graph in analysed]
    places = [_places(graph, found, parallel) for graph, found in zip(analysed, branches, strict=True)]
    if parallel.tp > 1 and graphs.config.queries != "one":
        raise ParallelError(
            "tensor-parallel ranks sum the gradients of one normed value for q, k and v, and of three where each has a "
            "read; that is not counted: leave queries out, or ask for tp=1."
        )
    if parallel.tp > 1:
        for graph, found in zip(analysed, branches, strict=True):
            check_shares(graph, found, parallel.tp)
    regions = sum(len(set(one.regions.values())) for one in places)
    reason = counts.not_counted
    if not reason and any(one.training is None for one in counts.plain or ()):
        reason = "no parameter or no output of the model wants a gradient"
    plain = attnres = None
    if not reason:
        stage("executing the graphs under checkpoints")
        others = [graph for graph in graphs.graphs if graph not in analysed]
        before = [graph.before_norms_apart() for graph in analysed]
        executed = [_plain(graph, _places(graph, branches_of(graph), parallel)) for graph in before]
        executed += [count(graph.captured.gm, graph.captured.inputs) for graph in others]
        plain = _side(executed)
        if parallel.checkpoint == "layer":
            attnres = _with_layers(graphs, analysed, places, executed)
        else:
            attnres = _beside(plain, counts)
    gradients = gradients_summed([branch for found in branches for branch in found])
    return SettingCounts(parallel, plain, attnres, reason, regions, gradients, counts.lengths)


def _places(graph: AnalysedGraph, branches: tuple[Branch, ...], parallel: Parallel) -> Places:
    """The regions of a graph, and the marks of its norms and of what ranks sum."""
    _check_not_empty(branches, parallel)
    regions: dict[Node, Region] = {}
    if parallel.checkpoint == "layer":
        regions = layer_regions(graph)
    elif parallel.checkpoint == "branch":
        regions = branch_regions(branches)
    places = Places(regions)
    for norm, states in norms_of(graph).values():
        if norm is not None and regions.keys().isdisjoint(norm.inner):
            places.mark(Mark.INSIDE, *(node for node in norm.inner if node is not norm.output))
            places.mark(Mark.STATE, *states)
    if parallel.tp > 1:
        places.mark(Mark.SUMMED, *(last_product(graph, branch) for branch in branches))
    return places


def _check_not_empty(branches: tuple[Branch, ...], parallel: Parallel) -> None:
    empty = next((branch for branch in branches if not branch.inner), None)
    if empty is not None and (parallel.checkpoint == "branch" or parallel.tp > 1):
        raise ParallelError(
            f"nothing of this model stands between a read and the write of {empty.module or empty.write.name}, so it "
            "has no branch that could be checkpointed or shared by tensor-parallel ranks: ask for checkpoint='layer' "
            "or for none, and for tp=1."
        )


def _plain(graph: AnalysedGraph, places: Places) -> Counted:
    with places.placed(graph):
        return count(close_regions(graph.captured.gm, in_python=True), graph.captured.inputs)


def _with_layers(
    graphs: ModelGraphs, analysed: Sequence[AnalysedGraph], places: Sequence[Places], plain: Sequence[Counted]
) -> Side:
    """The whole lowered graphs; and the graphs without streams as they are."""
    executed, saved = [], 0
    for graph, place, before in zip(analysed, places, plain[: len(analysed)], strict=True):
        with place.placed(graph):
            path = ResidualPath(graph)
            closed = close_regions(path.lowered(path.rewritten), in_python=True)
            found = count(closed, path.inputs(closed))
        executed.append(found)
        # A fused norm keeps what it reads; the plain one keeps what torch made of it, and so do both in the table.
        difference = found.saved_bytes - (before.saved_fused_bytes if path.is_fused else before.saved_bytes)
        saved += before.saved_bytes + difference
    others = plain[len(analysed) :]
    made = _side([*executed, *others])
    return Side(saved + sum(one.saved_bytes for one in others), made.training, made.again, made.summed)


def _beside(plain: Side, counts: ModelCounts) -> Side:
    """Reads and norms outside of the checkpoints: the plain model and its residual path."""
    assert counts.residual_path is not None
    saved = plain.saved_bytes - counts.states_bytes() + sum(one.saved_bytes for one in counts.residual_path)
    return Side(saved, plain.training + total(counts.residual_path, "training"), plain.again, plain.summed)


def _side(executed: Sequence[Counted]) -> Side:
    first, second = Sum(), Sum()
    for one in executed:
        first, second = first + one.summed[0], second + one.summed[1]
    saved = sum(one.saved_bytes for one in executed)
    return Side(saved, total(executed, "training"), total(executed, "again"), (first, second))
