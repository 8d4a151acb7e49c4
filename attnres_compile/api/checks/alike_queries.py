"""What ``verify`` holds a query each for q, k and v against: one query, which is what three alike are.

With queries and key weights alike in the reads of one norm, these give the same, and the model is the one with one
query a read, of the graph as it was captured. So norms that are put apart read the state that they did, with the
weights that they had, and lead to what they led to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.compile.graph_runs import Run, random_parameters, read_nodes, run
from attnres_compile.compile.levels import rewritten_under
from attnres_compile.progress import stage
from attnres_passes.ir.annotations import read_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId
from attnres_passes.rewrite.placeholders import placeholders_of_parameters

NAME = "random queries, alike for q, k and v = one query"


def runs(graph: AnalysedGraph, config: AttnResConfig) -> tuple[Run, Run]:
    """A run with one query a read, its reads numbered as in the other one; and one with several that are alike.

    Args:
        graph: with norms apart.
        config: of the verification.
    """
    stage("checking several queries against one")
    before, apart = graph.before_norms_apart(), rewritten_under(graph, config)
    single = rewritten_under(before, dataclasses.replace(config, queries="one"))
    parameters = random_parameters(single, before)
    of_read: dict[ReadId, list[Tensor]] = {}
    for (node, _), value in zip(placeholders_of_parameters(single, before.analysis.plan), parameters, strict=True):
        of_read.setdefault(read_of(node), []).append(value)
    one_of = dict(_alike(graph.analysis.plan, before.analysis.plan))
    left = {read_id: list(of_read.get(one, ())) for read_id, one in one_of.items()}
    alike = [left[read_of(node)].pop(0) for node, _ in placeholders_of_parameters(apart, graph.analysis.plan)]
    expected = run(single, before, read_nodes(single), parameters)
    found = run(apart, graph, read_nodes(apart), alike)
    return Run(expected.outputs, {read_id: expected.reads[one_of[read_id]] for read_id in found.reads}), found


def _alike(apart: Plan, single: Plan) -> Iterator[tuple[ReadId, ReadId]]:
    """Each read of a plan with norms apart, with the one that it is of the plan with one query a read."""
    for s, stream in enumerate(apart.streams):
        norms: dict[tuple[object, ...], int] = {}
        for k, read in enumerate(stream.reads):
            norm = (read.state, read.module, read.source) if read.argument else (k,)
            yield ReadId(s, k), ReadId(s, norms.setdefault(norm, len(norms)))
        assert len(norms) == len(single.streams[s].reads)
