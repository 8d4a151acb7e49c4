"""``verify``: prove on the user's own model that the rewrite computes what it should.

Checks that need no reference implementation. With zero queries and ``scale="sum"`` every read is the plain residual
sum, so the rewritten graph must equal the original one, read by read, and the compiled model must equal the plain
module in eager, gradients included (``verify_eager``), which knows nothing of our capture. With random queries and key
weights, every schedule must equal the definition. Reads are compared one by one, so that the first wrong one is named.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attnres_compile.api.checks.comparison import coarsest, compare, least_precise
from attnres_compile.api.checks.scale_deviations import scale_deviations
from attnres_compile.api.prepare import config_from
from attnres_compile.api.verification import Check, Deviation, Verification, dtype_name
from attnres_compile.api.verify_eager import PARTS, WHOLE, check_against_eager, zero_query_identity
from attnres_compile.capture.analysis import AnalysedGraph, analyse_model, apply_on_decline, one_graph, plan_of
from attnres_compile.capture.capture import buffers_restored
from attnres_compile.compile.graph_runs import (
    Run,
    random_parameters,
    read_nodes,
    run,
    stream_values,
    zeros_and_ones,
)
from attnres_compile.compile.levels import rewritten_under, run_passes_under
from attnres_compile.model.parameters import parameters_of, unwrapped
from attnres_compile.progress import stage
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.pipeline import GraphLevels
from attnres_passes.schedule.provider import Provider

SCHEDULES = ("direct", "two_phase")
ZERO_QUERIES = "zero queries, scale=sum"
LARGEST_COPY = 2 * 2**30
"""Bytes of a model in fp64 up to which gradients are compared in fp64: there are two sets of them, and a copy."""


def verify(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: AttnResConfig | None = None,
    **options: Any,
) -> Verification:
    """Compare the rewritten model with the original one and with the definition, on example inputs.

    Runs graphs eagerly, in the model's dtype and, where the model computes in one dtype throughout, in fp64 on a
    copy. A copy is then compiled, run, and compared with the plain model in eager, gradients included; of a model that
    Dynamo makes several graphs of, this is the one check. The model, its buffers and the random state are not changed.
    A prepared model is verified with its plan's config unless another is given; its trained queries play no part.

    Args:
        model, args, kwargs, config, options: those of ``prepare``.

    Raises:
        ConfigError, CaptureError, GraphBreakError, NoStreamError.
    """
    model = unwrapped(model)
    added = parameters_of(model)
    if added is not None and config is None and not options:
        config = added.plan.config
    chosen = config_from(config, options)
    if isinstance(one_graph(model, args, kwargs), str):
        return Verification((check_against_eager(model, args, kwargs, chosen, PARTS),))
    checks: list[Check] = []
    deviations: list[Deviation] = []
    providers = set()
    with torch.no_grad(), buffers_restored(model), torch.random.fork_rng():
        graphs = analyse_model(model, args, kwargs, chosen)
        plan = plan_of(graphs, chosen)
        if not plan.streams:
            apply_on_decline(plan)
        for graph in graphs:
            if graph.analysis.plan.streams:
                checks.append(_zero_query_check(graph, chosen))
                provider, of_schedules = _random_query_checks(graph, chosen)
                providers.add(provider)
                checks.extend(of_schedules)
                if chosen.scale == "mean" and not _is_on_meta(model):
                    deviations.extend(scale_deviations(graph))
        wide = list(_in_double(model, args, kwargs, chosen)) if plan.streams else []
    if plan.streams and not _is_on_meta(model):
        # Generated kernels compute in fp32, and would not be what runs on a copy in fp64.
        dtypes = [least_precise(graph.analysis) for graph in graphs if graph.analysis.plan.streams]
        computed, given = coarsest(dtypes), (args, kwargs)
        if providers == {Provider.TORCH} and not any(check.skipped for check in wide) and _fits_in_double(model):
            computed, given = torch.float64, _widened((tuple(args), dict(kwargs or {})))
        checks.append(check_against_eager(model, *given, chosen, WHOLE, computed))
    return Verification((*checks, *wide), tuple(deviations))


def _fits_in_double(model: nn.Module) -> bool:
    return sum(parameter.numel() * torch.float64.itemsize for parameter in model.parameters()) <= LARGEST_COPY


def _is_on_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _zero_query_check(graph: AnalysedGraph, config: AttnResConfig, is_copy: bool = False) -> Check:
    """Zero queries and scale="sum" give back the original model (paper, section 3: uniform weights).

    is_copy: the graph is of a copy in a wider dtype than the model was written for, in which it may not run.
    """
    stage("checking zero queries against the plain graph")
    identity, differs = zero_query_identity(config)
    name = f"{ZERO_QUERIES}{differs} = original"
    graph = _under(graph, identity) if differs else graph
    after = rewritten_under(graph, identity)
    try:
        expected = run(graph.captured.gm, graph, stream_values(graph), [])
    except Exception as error:  # of any class: it is the model's own
        if not is_copy:
            raise
        reason = f"the plain model does not run in float64 ({type(error).__name__}: {str(error).splitlines()[0]})"
        return Check(name, "float64", False, float("nan"), 0.0, skipped=reason)
    found = run(after, graph, read_nodes(after), zeros_and_ones(after, graph))
    return compare(name, graph, expected, found)


def _under(graph: AnalysedGraph, config: AttnResConfig) -> AnalysedGraph:
    """The graph with the analysis that another config gives."""
    return AnalysedGraph(graph.captured, find_streams(graph.analysis.trace, config))


def _window_check(graph: AnalysedGraph, config: AttnResConfig) -> Check:
    """Reads in a window equal those of all blocks with what is outside the window taken out, by its numbers."""
    stage("checking the window")
    found_in = rewritten_under(graph, config)
    wide = dataclasses.replace(config, window=None)
    of_all = _under(graph, wide)
    expected_in = rewritten_under(of_all, wide)
    plan = of_all.analysis.plan
    for node, reads in read_nodes(expected_in).items():
        sources, *rest = node.args
        assert isinstance(sources, (list, tuple))
        assert config.window is not None
        stream = plan.streams[reads[0].stream]
        outside = stream.reads[reads[0].index].state // stream.block_size - config.window
        node.args = ([source for k, source in enumerate(sources) if k == 0 or k > outside], *rest)
    expected_in.recompile()
    parameters = random_parameters(found_in, graph)
    expected = run(expected_in, graph, read_nodes(expected_in), parameters)
    found = run(found_in, graph, read_nodes(found_in), parameters)
    return compare(f"random queries, window={config.window} = all blocks, others taken out", graph, expected, found)


def _random_query_checks(graph: AnalysedGraph, config: AttnResConfig) -> tuple[Provider, list[Check]]:
    """Every schedule with random queries and key weights equals the definition; what reads are bound to."""
    checks = [] if config.window is None else [_window_check(graph, config)]
    if config.mechanism.by_definition:
        levels = run_passes_under(graph, dataclasses.replace(config, schedule="naive"), keeps_values=True)
        return levels.choice.provider, [*checks, _random_query_check(graph, levels, "as compiled")]
    for schedule in SCHEDULES:
        bound = dataclasses.replace(config, schedule=schedule)  # type: ignore[arg-type]
        levels = run_passes_under(graph, bound, keeps_values=True)
        checks.append(_random_query_check(graph, levels, f"schedule={schedule}"))
    if levels.choice.provider is Provider.TRITON:
        # Without gradients, kernels have a form of their own: reads that make their own logits.
        bound = dataclasses.replace(config, schedule="auto")
        levels = run_passes_under(graph, bound, keeps_values=True, differentiates=False)
        checks.append(_random_query_check(graph, levels, "schedule=auto, no gradients"))
    return levels.choice.provider, checks


def _random_query_check(graph: AnalysedGraph, levels: GraphLevels, name: str) -> Check:
    stage(f"checking random queries against the definition, {name}")
    parameters = random_parameters(levels.rewritten, graph)
    expected = run(levels.rewritten, graph, read_nodes(levels.rewritten), parameters)
    found = run(levels.lowered, graph, read_nodes(levels.lowered), parameters)

    def moved() -> Run:
        """The definition with every read off by one rounding."""
        return run(levels.rewritten, graph, read_nodes(levels.rewritten), parameters, moves_reads=True)

    return compare(f"random queries, {name} = definition", graph, expected, found, moved)


def _in_double(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, config: AttnResConfig
) -> Iterator[Check]:
    name = f"{ZERO_QUERIES}{zero_query_identity(config)[1]} = original"
    if _is_on_meta(model):
        return
    stage("checking in float64")
    double = copy.deepcopy(model).double()
    wide_args, wide_kwargs = _widened((tuple(args), dict(kwargs or {})))
    for graph in analyse_model(double, wide_args, wide_kwargs, config):
        if not graph.analysis.plan.streams:
            continue
        narrow = least_precise(graph.analysis)
        if narrow is not torch.float64:
            reason = f"the model computes in {dtype_name(narrow)} inside"
            yield Check(name, "float64", False, float("nan"), 0.0, skipped=reason)
            continue
        yield _zero_query_check(graph, config, is_copy=True)


def _widened(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs)
