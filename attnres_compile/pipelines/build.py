"""From a model and example inputs to one pure module per chunk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from attnres_compile.capture.analysis import AnalysedGraph, analyse_model
from attnres_compile.compile.matching import match
from attnres_compile.model.errors import GraphBreakError
from attnres_compile.model.parameters import require_parameters
from attnres_compile.pipelines.checkpoints import check_checkpoints
from attnres_compile.pipelines.chunk_module import ChunkBody, ModelConstant, ModelInput, ModelTensor, Origin
from attnres_compile.pipelines.errors import PipelineSupportError, StageError
from attnres_passes.ir.config import AttnResConfig, Inner
from attnres_passes.ir.levels import Level, check_level
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.text import graph_text
from attnres_passes.pipeline import lower_rewritten
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.split_stages import ChunkGraph, split
from attnres_passes.ranks.stages import StagedGraph, stage
from attnres_passes.ranks.transfers import ChunkPlan, Key, StagePlan, Transfer
from attnres_passes.rewrite.rewrite import rewrite
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.ranks.dtensors import is_spread, local_part


@dataclass(frozen=True)
class Chunks:
    """All chunks of a model.

    bodies[c]: chunk c as captured in training and in evaluation mode; examples[c]: for each key that chunk c needs, a
    tensor on "meta" of its shape and dtype per micro-batch; outputs: such tensors for what the model returns; digest: a
    hash of the plan and of every graph, equal on two ranks if and only if they run the same pipeline.
    """

    plan: StagePlan
    bodies: tuple[dict[bool, ChunkBody], ...]
    examples: tuple[dict[Key, Tensor], ...]
    outputs: tuple[Tensor, ...]
    digest: str

    def arrives(self, chunk: ChunkPlan) -> tuple[Tensor, ...]:
        """Examples of what a chunk receives."""
        return tuple(self.examples[chunk.index][key] for key in chunk.arrives)

    def sends(self, chunk: ChunkPlan) -> tuple[Tensor, ...]:
        """Examples of what a chunk sends; of the last one, the model's outputs."""
        if chunk.index + 1 == len(self.plan.chunks):
            return self.outputs
        return tuple(self.examples[chunk.index + 1][key] for key in chunk.sends)


@dataclass(frozen=True)
class _Captured:
    """The model in one mode, split."""

    staged: StagedGraph
    graphs: tuple[ChunkGraph, ...]
    bodies: tuple[ChunkBody, ...]


@dataclass(frozen=True)
class CutOptions:
    """How to cut, with ``transfer`` and ``cut_points`` of ``pipeline``.

    device: where the chunks will run, for a model on "meta"; inner: what compiles them; splits_backward: whether
    gradients of weights are made apart from those of inputs. torch then walks the graph behind each weight by itself,
    so that no computation may be shared between weights: every read is the definition.
    """

    layout: StageLayout
    transfer: Transfer | str = Transfer.CACHED
    cut_points: tuple[str, ...] | None = None
    device: torch.device | None = None
    splits_backward: bool = False
    inner: Inner = "eager"


def build_chunks(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], cut: CutOptions) -> Chunks:
    """Capture a prepared ``model`` on one micro-batch, rewrite it and cut it into chunks. The model is not changed.

    A model in training mode is captured in evaluation mode as well, cut at the same places.

    Args:
        model: prepared; its parameters become those of the chunks.
        args, kwargs: inputs of one micro-batch.
        cut: where and how to cut.

    Raises:
        CaptureError, GraphBreakError, NotPreparedError, StalePlanError, StageError, PipelineSupportError.
    """
    captured = {model.training: _captured(model, args, kwargs, cut)}
    plan = captured[model.training].staged.plan
    if model.training:
        with _evaluating(model):
            captured[False] = _captured(model, args, kwargs, cut, plan.cuts)
        if captured[False].staged.plan != plan:
            raise StageError(
                f"{type(model).__name__} has other sublayers in evaluation mode than in training; call model.eval() "
                "first, and the pipeline runs in that mode alone."
            )
    first = next(iter(captured.values()))
    examples = tuple(
        {key: _on_meta(example_value(node)) for key, node in keyed.items()} for keyed in first.staged.sources
    )
    outputs = tuple(_on_meta(example_value(node)) for node in _returned(first.staged.gm))
    texts = [plan.digest, str(require_parameters(model).plan.config)]
    texts.extend(graph_text(graph.gm) for mode in captured.values() for graph in mode.graphs)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    bodies = tuple({mode: found.bodies[c] for mode, found in captured.items()} for c in range(len(plan.chunks)))
    return Chunks(plan, bodies, examples, outputs, digest)


def _captured(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    cut: CutOptions,
    cuts: Sequence[int] | None = None,
) -> _Captured:
    added = require_parameters(model)
    graph = _whole(model, args, kwargs, added.plan.config)
    analysis = graph.analysis
    check_checkpoints(graph.captured.gm, cut.splits_backward)
    matched = match(analysis.plan, added.plan, analysis.trace, graph.captured.end)
    rewritten = rewrite(graph.captured.gm, analysis)
    is_read_spread = any(node.target is local_part for node in rewritten.gm.graph.nodes)
    if is_read_spread or any(is_spread(example_value(node)) for node in _returned(rewritten.gm)):
        raise PipelineSupportError(
            "the residual stream or an output of the model is a DTensor, and torch's pipelines send plain tensors; "
            "leave use_local_output=True, torch's default, in the plan of parallelize_module."
        )
    check_level(rewritten.gm, Level.REWRITTEN, analysis.plan)
    staged = stage(rewritten.gm, analysis.plan, cut.layout, cut.transfer, cut.cut_points, cuts)
    check_level(staged.gm, Level.REWRITTEN, analysis.plan)
    graphs = split(staged, cut.device)
    parameters = [added.parameter(matched.parameter(parameter)) for parameter in rewritten.parameters]
    origins = _origins(model, [*graph.captured.inputs, *parameters], leaves_by_name(args, kwargs))
    for place, parameter in enumerate(rewritten.parameters, start=len(graph.captured.inputs)):
        origin = origins[place]
        assert isinstance(origin, ModelTensor)
        origins[place] = dataclasses.replace(origin, groups=rewritten.groups.get(parameter.read, ()))
    config = dataclasses.replace(analysis.plan.config, inner=cut.inner)
    if cut.splits_backward:
        config = dataclasses.replace(config, schedule="naive")
    lowered_plan = dataclasses.replace(analysis.plan, config=config)
    bodies = tuple(
        ChunkBody(dataclasses.replace(chunk, gm=_lowered(chunk, lowered_plan)), origins, added.plan) for chunk in graphs
    )
    return _Captured(staged, graphs, bodies)


def _lowered(chunk: ChunkGraph, plan: Plan) -> GraphModule:
    """The lowered graph of a chunk, which holds its own reads of the plan and no others, with its checkpoints."""
    return lower_rewritten(chunk.gm, plan, functools.partial(check_level, only=chunk.reads)).closed


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def leaves_by_name(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors among the inputs of the model, by the names that chunks know them by.

    Args:
        args, kwargs: the inputs, trees of any kind.

    Returns:
        Such as ``args[0]`` and ``kwargs['input_ids']``.
    """
    named = (("args", tuple(args)), ("kwargs", dict(kwargs)))
    return {
        f"{name}{pytree.keystr(path)}": leaf
        for name, tree in named
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]
        if isinstance(leaf, Tensor)
    }


def _whole(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], config: AttnResConfig) -> AnalysedGraph:
    """The model as one graph. Raises GraphBreakError."""
    graphs = analyse_model(model, args, kwargs, config, static=True)
    if len(graphs) != 1:
        raise GraphBreakError(
            f"{type(model).__name__} breaks into {len(graphs)} graphs, and only a model of one graph can be cut into "
            "stages; torch.compile(model, fullgraph=True) names the line to take out."
        )
    return graphs[0]


def _origins(model: nn.Module, values: Sequence[Any], leaves: Mapping[str, Any]) -> dict[int, Origin]:
    """What each placeholder of the rewritten graph stands for, found by the identity of its value."""
    arguments = {id(leaf): ModelInput(name) for name, leaf in leaves.items()}
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(tensor), []).append(name)
    saved = set(model.state_dict())
    origins: dict[int, Origin] = {}
    for index, value in enumerate(values):
        if id(value) in arguments:
            origins[index] = arguments[id(value)]
        elif id(value) in names:
            paths = tuple(names[id(value)])
            origins[index] = ModelTensor(paths, value, persistent=paths[0] in saved)
        elif isinstance(value, Tensor):
            # A tensor that is no part of the module tree, such as one in a plain list.
            origins[index] = ModelTensor((f"attnres_constant_{index}",), value, persistent=False)
        else:
            origins[index] = ModelConstant(value)
    return origins


def _returned(gm: GraphModule) -> list[Node]:
    """What the whole graph returns. Raises StageError if that is not tensors alone."""
    given = next(iter(reversed(gm.graph.nodes))).args[0]
    assert isinstance(given, (tuple, list))
    nodes = [node for node in given if isinstance(node, Node)]
    if len(nodes) != len(given) or not all(isinstance(example_value(node), Tensor) for node in nodes):
        raise StageError(
            "the model returns something that is no tensor, which a pipeline cannot hand back; return tensors alone."
        )
    return nodes


def _on_meta(value: Any) -> Tensor:
    """A tensor without data like ``value``; a floating one requires a gradient, as one that is sent back does."""
    empty = torch.empty(tuple(int(size) for size in value.shape), dtype=value.dtype, device="meta")
    return empty.requires_grad_(value.is_floating_point())
