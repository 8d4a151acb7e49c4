"""A graph that is a piece of its model at run time: the sources of its streams come in and go out beside the states.

One graph of Dynamo's may serve several places of a stream: a layer that is used twice, code behind a graph break that
every layer runs. Which place it is in a call is told by the states that come in; each is rewritten when it is first
met. The first is rewritten while Dynamo hands over the graph, the others during a call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from attnres_compile.capture.cuts import placeholder_values
from attnres_compile.compile.dump import LevelDump
from attnres_compile.compile.obstacle_text import obstacle_text
from attnres_compile.compile.regions import compile_graph, compile_graph_later, compile_piece_graph
from attnres_compile.model.border.call_reads import note_reads
from attnres_compile.model.border.known_states import Sources, note_state, sources_of
from attnres_compile.model.border.offloaded import check_loaded
from attnres_compile.model.border.own_values import own_values
from attnres_compile.model.errors import BorderError, StalePlanError
from attnres_compile.model.parameters import AttnResParameters, is_in_use
from attnres_compile.recording.live import open_recording
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.piece import Entering, Obstacle, PieceAnalysis, find_pieces
from attnres_passes.inline.close_regions import close_regions
from attnres_passes.inline.open_regions import open_regions
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.read_id import ReadId
from attnres_passes.pipeline import lower_rewritten
from attnres_passes.rewrite.rewrite_piece import LeavingState, RewrittenPiece, SourceAt, rewrite_piece
from attnres_passes.torch_private.borders.tensor_identity import tied
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.graph_copies import copied
from attnres_passes.torch_private.ranks.dtensors import arrived, like_state
from attnres_passes.torch_private.state import unseen_by_checkpoints

log = logging.getLogger("attnres_compile")

Key = tuple[tuple[int, int, int], ...]
"""Of one place of a graph in its model: for each argument that is a state, its position, stream, and writes."""


@dataclass(frozen=True)
class _Variant:
    """The graph at one place.

    rewritten: None where nothing of a stream is in it, and it runs as it is; going_on: streams that it adds to and
    gives, with the position of the argument that they come in by; compiled_for: what the parameters of its reads were.
    """

    compiled: Callable[..., Any]
    rewritten: RewrittenPiece | None = None
    going_on: frozenset[tuple[int, int]] = frozenset()
    compiled_for: tuple[Any, ...] = ()


@dataclass(frozen=True)
class PieceOptions:
    """How a piece is compiled. within: paths of its module in the model, none without one; mode: of the compiler."""

    config: AttnResConfig
    within: tuple[str, ...]
    mode: str | None


def states_among(values: Sequence[Any], added: AttnResParameters | None = None) -> dict[int, Sources]:
    """The values, by position, that are states of a prepared model between its graphs.

    Args:
        values: given to a graph.
        added: parameters of the only model that counts; None for any.

    Raises:
        BorderError: the gradients of one would not be those of its sources.
    """
    found = {k: sources_of(value) for k, value in enumerate(values) if isinstance(value, Tensor)}
    return {
        k: sources for k, sources in found.items() if sources is not None and (added is None or sources.added is added)
    }


class PieceGraph:
    """Calls what the inner compiler made of a piece, with sources in and out.

    Args:
        gm: as Dynamo handed it over.
        added: the AttnRes parameters of the model.
        options: how it is compiled.
    """

    def __init__(self, gm: GraphModule, added: AttnResParameters, options: PieceOptions) -> None:
        # A copy, since Dynamo takes the values off its own graph once it is compiled.
        self.gm, self.added, self.options = open_regions(copied(gm)), added, options
        self.trace = trace_aten(self.gm)
        self.variants: dict[Key, _Variant] = {}
        self.reads: set[ReadId] = set()
        self.placeholders = placeholder_values(self.trace)

    def first(self, inputs: Sequence[Any], states: Mapping[int, Sources], dump: LevelDump) -> bool:
        """Compile for the place of the first call, while Dynamo calls the backend; whether anything is rewritten.

        Args:
            inputs: values of the placeholders.
            states: among the inputs.
            dump: of this compilation.

        Raises:
            BorderError: those of ``analyse``.
        """
        analysis = self.analyse(states)
        if all(piece.is_idle and piece.enters and not piece.leaving for piece in analysis.pieces):
            return False
        self.variants[_key(states)] = self._compiled(
            analysis, inputs, dump, partial(compile_piece_graph, added=self.added)
        )
        return True

    def analyse(self, states: Mapping[int, Sources]) -> PieceAnalysis:
        """What the graph holds of the plan, for the states that come in.

        Raises:
            BorderError: a part of it cannot be replaced.
        """
        plan = replace(self.added.plan, config=self.options.config)
        entering: dict[int, Entering] = {}
        for position, sources in states.items():
            value = self.placeholders[position]
            if value is not None:
                entering[value] = Entering(sources.stream, sources.state, sources.groups)
        found = find_pieces(self.trace, plan, entering, self.options.within)
        if isinstance(found, Obstacle):
            raise BorderError(obstacle_text(found, plan))
        return found

    def __call__(self, *args: Any) -> Any:
        if not is_in_use(self.added):
            raise StalePlanError(
                "this part of a model was compiled for AttnRes parameters that no model has now; call "
                "torch.compiler.reset() before you call the model again."
            )
        states = {} if self.added.calls.on_purpose else states_among(args, self.added)
        states = {k: sources for k, sources in states.items() if not self._finds_root(k, sources)}
        key = _key(states)
        variant = self.variants.get(key)
        # Dynamo has no guards on the parameters of reads; what a guard would check is checked here.
        if variant is None or variant.compiled_for != self._signatures(variant):
            with unseen_by_checkpoints():
                analysis = self.analyse(states)
                variant = self._compiled(analysis, args, LevelDump(), compile_graph_later)
            self.variants[key] = variant
        piece = variant.rewritten
        if piece is None:
            return variant.compiled(*map(arrived, args))
        if open_recording(self.added) is not None:
            raise BorderError(
                "depth weights are recorded of a model that is compiled as a whole, and this one is compiled in parts; "
                'record it compiled by model.compile(backend="attnres"), without graph breaks.'
            )
        given = []
        for position, sources in states.items():
            first, *others = (like_state(source, args[position]) for source in sources.tensors)
            # A state that does not go on has no gradient of its own.
            given += [first if (sources.stream, position) in variant.going_on else tied(first, args[position]), *others]
        held = list(map(self.added.parameter, piece.parameters))
        check_loaded(self.added, piece.parameters, held, args)
        parameters = own_values(piece.parameters, held, piece.groups)
        results = variant.compiled(*map(arrived, (*args, *given)), *parameters)
        own = len(results) - _number_new(piece)
        note_reads(self.added.calls, {parameter.read for parameter in piece.parameters})
        tensors = [leaf for leaf in tree_leaves(results[:own]) if isinstance(leaf, Tensor)]
        for leaving in piece.leaving:
            state = args[leaving.completed[0].index] if leaving.output is None else tensors[leaving.output]
            self._note(leaving, state, args, given, results[own:])
        return results[:own]

    def _signatures(self, variant: _Variant) -> tuple[Any, ...]:
        values = map(self.added.parameter, () if variant.rewritten is None else variant.rewritten.parameters)
        return tuple((value.dtype, value.device, value.requires_grad) for value in values)

    def _finds_root(self, position: int, sources: Sources) -> bool:
        """Whether the graph knows an argument to be the root of its stream by itself.

        The first call of it has told others; one that recomputes it for a checkpoint runs the very same.
        """
        known = self.variants.get(())
        return (
            sources.state == 0
            and known is not None
            and known.rewritten is not None
            and any(one.output is None and one.completed[0].index == position for one in known.rewritten.leaving)
        )

    def _note(
        self, leaving: LeavingState, state: Tensor, args: Sequence[Any], given: Sequence[Tensor], new: Sequence[Tensor]
    ) -> None:
        places: dict[str, Sequence[Any]] = {"argument": args, "given": given, "new": new}

        def source(place: SourceAt) -> Tensor:
            found: Tensor = places[place.kind][place.index]
            return found

        partial = None if leaving.partial is None else source(leaving.partial)
        completed, recorded = tuple(map(source, leaving.completed)), torch.is_grad_enabled()
        note_state(
            state,
            Sources(self.added, leaving.stream, leaving.state, completed, partial, recorded, leaving.groups),
        )

    def _compiled(
        self, analysis: PieceAnalysis, inputs: Sequence[Any], dump: LevelDump, compiler: Callable[..., Any]
    ) -> _Variant:
        config, mode = self.options.config, self.options.mode
        if not analysis.pieces:
            closed = close_regions(self.gm, config.inner == "eager") if torch.is_grad_enabled() else self.gm
            return _Variant(compiler(closed, list(map(arrived, inputs)), config, mode))
        rewritten = rewrite_piece(self.gm, analysis)
        dump.only = set(analysis.depth_reads)
        levels = lower_rewritten(rewritten.gm, analysis.plan, dump, differentiates=torch.is_grad_enabled())
        placeholders = [example_value(node) for node in rewritten.gm.graph.nodes if node.op == "placeholder"]
        sources = placeholders[len(inputs) : len(inputs) + rewritten.num_sources]
        held = list(map(self.added.parameter, rewritten.parameters))
        parameters = own_values(rewritten.parameters, held, rewritten.groups)
        compiled = compiler(levels.closed, [*map(arrived, inputs), *sources, *parameters], config, mode)
        self.reads |= set(analysis.depth_reads)
        log.info(
            "attnres: %s, a part of its model: %d reads rewritten, %d sources in, %s, reads on %s (%s)",
            self.options.within[0] if self.options.within else "code between modules",
            len(analysis.depth_reads),
            rewritten.num_sources,
            ", ".join(f"state {one.state} out" for one in rewritten.leaving) or "no state out",
            levels.choice.provider.value,
            levels.choice.why,
        )
        going_on = frozenset(
            (piece.stream, self.placeholders.index(piece.nodes.value))
            for piece in analysis.pieces
            if piece.enters and piece.leaving
        )
        variant = _Variant(compiled, rewritten, going_on)
        return replace(variant, compiled_for=self._signatures(variant))


def _key(states: Mapping[int, Sources]) -> Key:
    return tuple((position, sources.stream, sources.state) for position, sources in sorted(states.items()))


def _number_new(piece: RewrittenPiece) -> int:
    """How many sources the graph gives behind its own outputs."""
    places = [
        place for leaving in piece.leaving for place in (*leaving.completed, leaving.partial) if place is not None
    ]
    return 1 + max((place.index for place in places if place.kind == "new"), default=-1)


def compile_piece(
    gm: GraphModule, inputs: Sequence[Any], added: AttnResParameters, options: PieceOptions, dump: LevelDump
) -> Callable[..., Any]:
    """Compile a graph that is a piece of a prepared model, while Dynamo hands it over.

    Args:
        gm: the graph, which is not changed.
        inputs: values of its placeholders.
        added: the AttnRes parameters of the model.
        options: how it is compiled.
        dump: of this compilation.

    Raises:
        BorderError: the sources of a state that comes in are not known, or cannot follow it through the graph.
    """
    piece = PieceGraph(gm, added, options)
    states = states_among(inputs, added)
    if not piece.first(inputs, states, dump):
        log.info("attnres: a part of a prepared model without its residual stream, compiled as it is")
        return compile_graph(gm, list(inputs), options.config, options.mode)
    added.calls.compiled += 1
    return piece
