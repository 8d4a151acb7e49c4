"""The torch.compile backend: one captured graph in, one compiled callable out, a line per step."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.fx import GraphModule

from attnres_compile.capture.analysis import apply_on_decline, warn_if_partial
from attnres_compile.capture.graph_breaks import check_not_cut
from attnres_compile.compile.borders import compile_piece
from attnres_compile.compile.dump import LevelDump
from attnres_compile.compile.matching import check_due, match
from attnres_compile.compile.parts import is_piece, piece_options, prepared_parameters
from attnres_compile.compile.pieces import check_not_a_piece
from attnres_compile.compile.regions import compile_graph
from attnres_compile.compile.runtime import CompiledGraph, PlainGraph
from attnres_compile.model import parameters, status
from attnres_compile.model.border.own_values import own_values
from attnres_compile.model.border.part_of import PART_OF, is_part_of_prepared
from attnres_compile.model.in_force import guard
from attnres_compile.model.in_force.guarded_forward import NAME as GUARD
from attnres_compile.model.in_force.guarded_forward import guard_of
from attnres_compile.model.optimizer_check import watch_optimizers
from attnres_compile.model.owner import NoOwner, Owner, find_owner
from attnres_compile.model.parameters import NAME, AttnResParameters
from attnres_compile.model.plan_tensor import check_plan_tensor
from attnres_compile.model.planned_config import FIXED_BY_PLAN, check_agrees
from attnres_compile.model.planned_reads import PlannedReads
from attnres_compile.progress import stage
from attnres_compile.recording.graph import GraphRecorder
from attnres_kernels.errors import AttnResError
from attnres_passes.analyses.streams import Analysis
from attnres_passes.inline.norms_apart import analysed_apart
from attnres_passes.inline.open_regions import open_regions
from attnres_passes.ir.config import AttnResConfig, ConfigError
from attnres_passes.ir.levels import Level, is_ours
from attnres_passes.ir.plan import Plan
from attnres_passes.pipeline import run_passes
from attnres_passes.schedule.provider import ProviderChoice
from attnres_passes.torch_private import inner_compilers
from attnres_passes.torch_private.dynamo import (
    GraphEnd,
    as_backend_failure,
    graph_end,
    guard_identity,
    guard_value,
    uncompiled_caller,
)
from attnres_passes.torch_private.frames import mark_as_backend, notes_for_backend
from attnres_passes.torch_private.inner_compilers import inductor_modes
from attnres_passes.torch_private.state import unseen_by_checkpoints
from attnres_passes.torch_private.version import warn_if_untested

log = logging.getLogger("attnres_compile")


@mark_as_backend
def attnres(
    gm: GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Backend of ``torch.compile(model, backend="attnres", mode=.., options=..)``.

    Args:
        gm: Dynamo's graph, which is not changed.
        example_inputs: values of its placeholders, real parameters among them.
        mode: a mode of Inductor; with ``inner="inductor"`` only.
        options: fields of AttnResConfig.

    Raises:
        AttnResError, which is also torch's BackendCompilerFailed. The model is then as it was.
    """
    warn_if_untested()
    owner: Owner | NoOwner | None = None
    try:
        owner = find_owner(gm)
        with unseen_by_checkpoints():
            return _compile(gm, example_inputs, owner, mode, options or {})
    except AttnResError as error:
        if isinstance(owner, Owner) and owner.parameters is not None:
            status.note_failed(owner.model, owner.parameters.plan, error)
            owner.parameters.calls.last = ""
        raise as_backend_failure(error) from error.__cause__


def _compile(
    gm: GraphModule, inputs: list[Any], owner: Owner | NoOwner, mode: str | None, options: Mapping[str, Any]
) -> Callable[..., Any]:
    config = _config(owner, options)
    _check_mode(mode, config)
    _check_inference(config)
    end = graph_end()
    dump = LevelDump()
    # Decide first, on frozen data.
    if isinstance(owner, Owner) and owner.parameters is not None:
        guard.connect(owner.model, owner.parameters.plan, owner.parameters.calls)
        check_plan_tensor(owner.parameters)
        if owner.parameters.calls.on_purpose:
            return _compile_plain(gm, inputs, owner, owner.parameters, config, mode)
    if isinstance(owner, NoOwner) and any(map(is_ours, gm.graph.nodes)):
        # A function with a backward pass in it: behind the break there, Dynamo compiles the Python of our operators.
        return inner_compilers.compile_inner(gm, inputs, config.inner, mode)
    stage("analysing the captured graph")
    opened = open_regions(gm)
    opened, analysis = analysed_apart(opened, config)
    dump(opened, Level.CAPTURED, analysis.plan)
    dump.plan(analysis.plan)
    added = prepared_parameters(owner, inputs)
    if added is not None and is_piece(owner, added, analysis, notes_for_backend()):
        part = compile_piece(gm, inputs, added, piece_options(owner, gm, config, mode), dump)
        if isinstance(owner, Owner):
            _guard_graph(owner)
            status.note_part(owner.model, added.plan, getattr(part, "reads", ()))
        return part
    if isinstance(owner, NoOwner) and analysis.plan.streams:
        raise owner.error
    if isinstance(owner, Owner):
        check_not_a_piece(owner, analysis, inputs, end)
    if isinstance(owner, NoOwner) or not analysis.plan.streams:
        return _compile_unchanged(gm, inputs, owner, analysis, end, config, mode)
    for stream in analysis.plan.streams:
        check_not_cut(stream, end)
    matched = _matched(owner, analysis, end)
    check_due(notes_for_backend(), owner.parameters, matched, end)
    # Then build the new graph beside the old one.
    levels = run_passes(opened, analysis, dump, differentiates=torch.is_grad_enabled())
    dump.schedule(levels.schedule_text())
    # Last, change the model: it gets its parameters if it was not prepared.
    planned = tuple(map(matched.parameter, levels.rewrite.parameters))
    with _registered(owner, analysis.plan) as added:
        held = [added.parameter(parameter) for parameter in planned]
        new_inputs = own_values(levels.rewrite.parameters, held, levels.rewrite.groups)
        stage(f"{config.inner} compiles the rewritten graph")
        compiled = compile_graph(levels.closed, [*inputs, *new_inputs], config, mode)
        _guard_graph(owner)
    added.calls.compiled += 1
    status.note_rewritten(owner.model, added.plan, len({parameter.read for parameter in planned}))
    _log_rewritten(analysis.plan, config, levels.choice)
    recorder = GraphRecorder(levels.rewrite, analysis.plan, mode, matched)
    return CompiledGraph(compiled, owner.model, added, planned, recorder)


def _compile_plain(
    gm: GraphModule,
    inputs: list[Any],
    owner: Owner,
    added: AttnResParameters,
    config: AttnResConfig,
    mode: str | None,
) -> Callable[..., Any]:
    """A graph of a prepared model inside ``attnres_compile.plain``: compiled as it is."""
    compiled = inner_compilers.compile_inner(gm, inputs, config.inner, mode)
    _guard_graph(owner)
    return PlainGraph(compiled, added.calls)


def _guard_graph(owner: Owner) -> None:
    """Keep the graph being compiled to this model, to its parameters, and to being plain or not."""
    path = next((name for name, part in owner.frame.module.named_modules() if part is owner.model), None)
    if path is not None:
        attnres_path = f"{path}.{NAME}" if path else NAME
        guard_identity(owner.frame, [attnres_path])
        guard_value(owner.frame, attnres_path, "calls", "on_purpose")
        return
    # The frame is that of a part of the model, and nothing leads from there to the model.
    guard_identity(owner.frame)
    if is_part_of_prepared(owner.frame.module):
        guard_value(owner.frame, "", PART_OF)
    if guard_of(owner.frame.module) is not None:
        guard_value(owner.frame, "", GUARD, "calls", "on_purpose")


def _config(owner: Owner | NoOwner, options: Mapping[str, Any]) -> AttnResConfig:
    """The options, or those of the plan with the choices of this compilation. Raises ConfigError."""
    given = AttnResConfig.from_options(options)
    if isinstance(owner, NoOwner) or owner.parameters is None:
        return given
    planned = owner.parameters.plan.config
    check_agrees(given, planned, [name for name in FIXED_BY_PLAN if name in options])
    free = {name: getattr(given, name) for name in options if name not in FIXED_BY_PLAN}
    return dataclasses.replace(planned, **free)


def _check_mode(mode: str | None, config: AttnResConfig) -> None:
    if mode is None:
        return
    if config.inner != "inductor":
        raise ConfigError(f"mode={mode!r} is Inductor's, and inner={config.inner!r} has no modes; leave mode out.")
    known = inductor_modes()
    if mode not in known:
        raise ConfigError(f"mode={mode!r} is unknown to Inductor; it has {', '.join(map(repr, known))}.")


def _check_inference(config: AttnResConfig) -> None:
    if config.sequence_group is not None and torch.is_grad_enabled():
        raise ConfigError(
            "sequence_group is for inference, as its collectives pass no gradients on; call the model under "
            "torch.no_grad() or torch.inference_mode(), or leave the option out."
        )


def _matched(owner: Owner, analysis: Analysis, end: GraphEnd) -> PlannedReads:
    """The reads of this graph in the plan of the model. Raises StalePlanError."""
    if owner.parameters is None:
        return PlannedReads.of(analysis.plan)
    return match(analysis.plan, owner.parameters.plan, analysis.trace, end)


def _compile_unchanged(
    gm: GraphModule,
    inputs: list[Any],
    owner: Owner | NoOwner,
    analysis: Analysis,
    end: GraphEnd,
    config: AttnResConfig,
    mode: str | None,
) -> Callable[..., Any]:
    """A graph without streams: part of a model that has them in another graph, or of one that has none."""
    # Without a module there is no model: a loss function that Dynamo compiles by itself after a graph break.
    if isinstance(owner, Owner) and owner.parameters is not None:
        _matched(owner, analysis, end)
    check_due(notes_for_backend(), None, PlannedReads({}), end)
    if isinstance(owner, Owner) and owner.parameters is None and not end.is_break:
        # Before a break, the streams of an unprepared model may still come.
        caller = uncompiled_caller(owner.frame.module)
        apply_on_decline(analysis.plan, _piece_note(owner, caller) if caller else "")
        status.note_declined(owner.model, analysis.plan)
    log.info("attnres: no residual stream in this graph, compiled as it is")
    return inner_compilers.compile_inner(gm, inputs, config.inner, mode)


def _piece_note(owner: Owner, caller: str) -> str:
    return (
        f" in {type(owner.model).__name__}, which is called at {caller} outside of any graph (if the whole model is "
        "compiled, a graph break there cuts its stream: torch.compile(model, fullgraph=True) names the line)"
    )


@contextlib.contextmanager
def _registered(owner: Owner, plan: Plan) -> Iterator[parameters.AttnResParameters]:
    """The parameters of the model, made now if it was not prepared, and taken off again if compiling fails."""
    if owner.parameters is not None:
        yield owner.parameters
        return
    added = parameters.register(owner.model, plan, compiled_already=True)
    try:
        yield added
    except BaseException:
        parameters.remove(owner.model)
        raise
    watch_optimizers()
    warn_if_partial(plan)
    warnings.warn(
        f"attnres: {type(owner.model).__name__} was not prepared, so its first call registered "
        f"{sum(parameter.numel() for parameter in added.parameters()):,} AttnRes parameters as model.attnres. An "
        "optimizer made before that call does not hold them: make it now, or call attnres_compile.prepare(model, ..) "
        "first.",
        stacklevel=2,
    )


def _log_rewritten(plan: Plan, config: AttnResConfig, choice: ProviderChoice) -> None:
    reads = sum(len(stream.parametrized_reads) for stream in plan.streams)
    blocks = ", ".join(
        f"{stream.name}: {len(stream.writes)} writes in {stream.num_blocks} blocks" for stream in plan.streams
    )
    log.info(
        "attnres: %d stream%s, %d reads rewritten (%s), %d declined, schedule=%s, inner=%s, reads on %s (%s)",
        len(plan.streams),
        "" if len(plan.streams) == 1 else "s",
        reads,
        blocks,
        len(plan.declined),
        config.schedule,
        config.inner,
        choice.provider.value,
        choice.why,
    )
