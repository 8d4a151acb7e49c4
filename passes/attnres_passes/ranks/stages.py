"""Pass: rewritten -> rewritten, every node marked with the pipeline chunk that runs it.

Before::

    read_0 = torch.ops.attnres.depth_attention([x, a], key_0, 1e-06, 'mean')  # attnres: read stream=0 read=1 ..
    n1 = layer_norm(read_0)

After::

    read_0 = torch.ops.attnres.depth_attention([x, a], key_0, 1e-06, 'mean')  # attnres: read stream=0 read=1 .. stage=1
    n1 = layer_norm(read_0)                                                   # attnres: stage=1

What crosses a boundary is the sources of the next read, completed blocks and the open partial sum, and nothing else;
a model that passes more (a skip over several sublayers, an output made on the way) is refused with the value's name.
The graph given is not changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.ir.annotations import annotation_of, set_stages
from attnres_passes.ir.plan import Plan, Stream
from attnres_passes.ranks.chunks import Chunks, chunks_of_nodes, described
from attnres_passes.ranks.cuts import balanced_cuts, cuts_at_modules, sublayer_flops
from attnres_passes.ranks.layout import StageError, StageLayout
from attnres_passes.ranks.positions import Positions, positions_of, single_stream
from attnres_passes.ranks.transfers import Key, StagePlan, Transfer, plan_stages
from attnres_passes.rewrite.placeholders import placeholders_of_parameters
from attnres_passes.torch_private.example_values import example_value, fake_mode_of
from attnres_passes.torch_private.graph_copies import copied


@dataclass(frozen=True)
class StagedGraph:
    """A rewritten graph with marked nodes. sources[c]: the node of each key that chunk c needs."""

    gm: GraphModule
    plan: StagePlan
    sources: tuple[dict[Key, Node], ...]


def stage(
    rewritten: GraphModule,
    plan: Plan,
    layout: StageLayout,
    transfer: Transfer | str = Transfer.CACHED,
    cut_points: Sequence[str] | None = None,
    cuts: Sequence[int] | None = None,
) -> StagedGraph:
    """Plan the stages of a graph of the rewritten level, and mark a copy of it.

    Args:
        rewritten: the graph.
        plan: of its streams.
        layout: ranks, and chunks on each.
        transfer: what a hop carries.
        cut_points: path of the first module of every chunk but the first.
        cuts: writes before each chunk, and of all. Without cuts and cut points, FLOPs are balanced.

    Raises:
        StageError: the graph cannot be cut so.
    """
    stream = single_stream(plan)
    if plan.config.window is not None:
        raise StageError(
            f"window={plan.config.window} leaves blocks out of reads, and a hop of the pipeline carries all of them; "
            "leave window out, or run the model without a pipeline."
        )
    gm = copied(rewritten)
    trace = trace_rewritten(rewritten, plan)
    positions = positions_of(gm, plan)
    if cuts is not None:
        cuts = tuple(cuts)
    elif cut_points is None:
        costs = sublayer_flops(trace, positions.of, list(gm.graph.nodes), len(stream.writes))
        cuts = balanced_cuts(stream, layout.chunks, costs)
    else:
        cuts = cuts_at_modules(stream, layout.chunks, cut_points)
    stages = plan_stages(layout, cuts, stream.block_size, transfer, _labels(stream))
    chunks = chunks_of_nodes(gm, positions, cuts, trace)
    sources = _sources(stages, positions)
    _check_crossings(gm, chunks, sources)
    for node, found in chunks.items():
        if node.op != "output":
            # What nothing uses, such as a parameter that this forward leaves out, stands with the first chunk.
            set_stages(node, tuple(sorted(found)) or (0,))
    return StagedGraph(gm, stages, sources)


def _labels(stream: Stream) -> list[str]:
    """A module per write: the one that makes it, or, where it makes several, the one that reads the write's input."""
    shared = Counter(write.module for write in stream.writes)
    readers = {read.state + 1: read.module for read in reversed(stream.reads)}
    return [
        write.module if shared[write.module] == 1 else readers.get(number) or write.module
        for number, write in enumerate(stream.writes, start=1)
    ]


def trace_rewritten(rewritten: GraphModule, plan: Plan) -> AtenTrace:
    """The operations behind a copy of a rewritten graph, whose own placeholders have no example values.

    Args:
        rewritten: the graph.
        plan: of its streams.
    """
    gm = copied(rewritten)
    given = [node for node in gm.graph.nodes if node.op == "placeholder" and annotation_of(node) is None]
    examples = [example_value(node) for node in given]
    like = next(value for value in examples if isinstance(value, torch.Tensor) and value.is_floating_point())
    with fake_mode_of(examples):
        for node, form in placeholders_of_parameters(gm, plan):
            node.meta["example_value"] = torch.empty(form.shape, dtype=like.dtype, device=like.device)
    return trace_aten(gm)


def _sources(plan: StagePlan, positions: Positions) -> tuple[dict[Key, Node], ...]:
    """The nodes that cross into each chunk. Raises StageError if a block is not one value throughout."""
    found: list[dict[Key, Node]] = []
    value_of: dict[Key, Node] = {}
    for chunk in plan.chunks:
        nodes = positions.sources[chunk.begin] if chunk.index else ()
        keyed = dict(zip(chunk.needed, nodes, strict=True))
        for key, node in keyed.items():
            if isinstance(key, int) and value_of.setdefault(key, node) is not node:
                raise StageError(
                    f"block {key} is another value before chunk {chunk.index} than before the chunks ahead of it: the "
                    f"stream is cast, permuted or dropped out in between, as {described(node)}; keep the stream as it "
                    "is from its first sublayer on, or use one chunk."
                )
        found.append(keyed)
    return tuple(found)


def _check_crossings(gm: GraphModule, chunks: Chunks, sources: Sequence[dict[Key, Node]]) -> None:
    """Raise StageError for the first value that crosses a boundary and is no source there."""
    crossing = [set(keyed.values()) for keyed in sources]
    for node in gm.graph.nodes:
        for used in node.all_input_nodes:
            for chunk in chunks[node] - chunks[used]:
                if used not in crossing[chunk]:
                    made = min(chunks[used], default=0)
                    end = "is an output of the model" if node.op == "output" else f"is used by {described(node)}"
                    raise StageError(
                        f"{described(used)} is made in chunk {made} and {end} in chunk {chunk}; only completed blocks "
                        "and the open partial sum go from chunk to chunk. Make it inside the chunk that uses it, take "
                        "it out of the model's outputs (use_cache=False, output_hidden_states=False), or choose other "
                        "cut points."
                    )
