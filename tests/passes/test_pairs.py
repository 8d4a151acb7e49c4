"""One small Before and Expected of every pass that changes a graph, compared whole.

That of ``attnres_passes/schedule/fuse.py`` is ``tests/golden/passes/schedule/fuse.txt``, and so on; that of the rewrite
itself, from which the others go on, stands in ``tests/passes/rewrite/test_rewrite.py``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

import attnres_passes
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.piece import Entering, PieceAnalysis, find_pieces
from attnres_passes.inline.close_regions import close_regions
from attnres_passes.inline.norms_apart import analysed_apart
from attnres_passes.inline.open_regions import open_regions
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.text import graph_text
from attnres_passes.lower.lower import lower
from attnres_passes.lower.split_at_reads import NotSplit, split_at_reads
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.shard_sequence import shard_sequence
from attnres_passes.ranks.shards import Shards
from attnres_passes.ranks.split_stages import split
from attnres_passes.ranks.stages import stage
from attnres_passes.rewrite.record import record
from attnres_passes.rewrite.rewrite import Rewritten
from attnres_passes.rewrite.rewrite_piece import rewrite_piece
from attnres_passes.schedule.fuse import fuse
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.schedule import schedule
from tests.golden_text import GOLDEN, check_golden
from tests.passes.helpers import WIDTH, analysed, captured, rewritten, sample
from tests.passes.ir.text_graph import assert_text_is_the_graph
from tests.passes.rewrite import test_rewrite

Pass = Callable[[GraphModule], Sequence[GraphModule]]


class Tiny(nn.Module):
    """Three sublayers, in fp32, which generated kernels take."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ParameterList(torch.randn(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.ParameterList(torch.ones(WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        for k in range(3):
            x = x + F.linear(F.rms_norm(x, (WIDTH,), self.norm[k], 1e-5), self.linear[k])
        return F.rms_norm(x, (WIDTH,), self.norm[3], 1e-5)


def rewritten_tiny(schedule: str = "two_phase") -> tuple[Rewritten, Plan]:
    _, analysis, result = rewritten(Tiny(), sample().float(), block_size=3, schedule=schedule)
    return result, analysis.plan


def scheduled_tiny(provider: Provider) -> tuple[GraphModule, Plan]:
    result, plan = rewritten_tiny()
    return schedule(result.gm, plan, ProviderChoice.of(plan, provider)).gm, plan


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.ParameterList([torch.ones(WIDTH)]), nn.ParameterList([torch.randn(WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.linear(F.rms_norm(x, (WIDTH,), self.norm[0], 1e-5), self.linear[0])
        return x + F.rms_norm(x, (WIDTH,), self.norm[0], 1e-5).sin()


class Layers(nn.Module):
    """Two layers of two sublayers, each layer as it is or in a checkpoint."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return F.rms_norm(x, (WIDTH,), None, 1e-5)


def of_open_regions() -> tuple[GraphModule, Pass]:
    return captured(Layers(checkpointed=True), sample().float()).gm, lambda gm: [open_regions(gm)]


def of_close_regions() -> tuple[GraphModule, Pass]:
    opened = open_regions(captured(Layers(checkpointed=True), sample().float()).gm)
    return opened, lambda gm: [close_regions(gm, in_python=False)]


def of_rewrite_piece() -> tuple[GraphModule, Pass]:
    """The second layer by itself, with a block of three sublayers open."""
    model = Layers()
    _, analysis = analysed(model, sample().float(), block_size=3)
    gm = captured(model.layers[1], sample().float()).gm
    trace = trace_aten(gm)
    (state,) = (value for node, value in zip(trace.nodes, trace.node_output, strict=True) if node.name == "l_x_")
    pieces = find_pieces(trace, analysis.plan, {state: Entering(stream=0, state=2)}, ["layers.1"])
    assert isinstance(pieces, PieceAnalysis), pieces
    return gm, lambda gm: [rewrite_piece(gm, pieces).gm]


class Attends(nn.Module):
    """A feed-forward, and an attention behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.ParameterList([torch.ones(WIDTH)] * 2), nn.ParameterList([torch.ones(WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        x = x + F.linear(F.rms_norm(x, (WIDTH,), self.norm[0], 1e-5), self.linear[0])
        n = F.rms_norm(x, (WIDTH,), self.norm[1], 1e-5)
        q, k, v = (F.linear(n, self.linear[0]) for _ in range(3))
        return x + F.scaled_dot_product_attention(q, k, v)


def of_norms_apart() -> tuple[GraphModule, Pass]:
    config = AttnResConfig(queries="qkv")
    return captured(Attends(), sample().float()).gm, lambda gm: [analysed_apart(gm, config)[0]]


def of_record() -> tuple[GraphModule, Pass]:
    result, _ = rewritten_tiny()
    return result.gm, lambda _: [record(result, with_gradients=True).result.gm]


def of_shard_sequence() -> tuple[GraphModule, Pass]:
    """For the first of two ranks."""
    result, _ = rewritten_tiny()
    return result.gm, lambda _: [shard_sequence(result, Shards("0", size=2, rank=0))]


def of_stages() -> tuple[GraphModule, Pass]:
    result, plan = rewritten_tiny()
    return result.gm, lambda gm: [stage(gm, plan, StageLayout(2)).gm]


def of_split_stages() -> tuple[GraphModule, Pass]:
    result, plan = rewritten_tiny()
    staged = stage(result.gm, plan, StageLayout(2))
    return staged.gm, lambda _: [chunk.gm for chunk in split(staged)]


def of_schedule() -> tuple[GraphModule, Pass]:
    result, plan = rewritten_tiny()
    return result.gm, lambda gm: [schedule(gm, plan, ProviderChoice.of(plan, Provider.TORCH)).gm]


def of_fuse() -> tuple[GraphModule, Pass]:
    gm, plan = scheduled_tiny(Provider.TRITON)
    return gm, lambda gm: [fuse(gm, plan).gm]


def of_lower() -> tuple[GraphModule, Pass]:
    """What the schedule left as the definition; the rest is in the pairs of ``bind_torch`` and ``bind_kernels``."""
    result, plan = rewritten_tiny("naive")
    return result.gm, lambda gm: [lower(gm, plan, Provider.TORCH)]


def of_bind_torch() -> tuple[GraphModule, Pass]:
    gm, plan = scheduled_tiny(Provider.TORCH)
    return gm, lambda gm: [lower(gm, plan, Provider.TORCH)]


def of_bind_kernels() -> tuple[GraphModule, Pass]:
    gm, plan = scheduled_tiny(Provider.TRITON)
    return fuse(gm, plan).gm, lambda gm: [lower(gm, plan, Provider.TRITON)]


def of_split_at_reads() -> tuple[GraphModule, Pass]:
    """Both sublayers of the second layer are parts of the first, and so is a read of two sources."""
    _, analysis, result = rewritten(Layers(), sample().float(), block_size=2, schedule="naive")
    lowered = lower(
        schedule(result.gm, analysis.plan, ProviderChoice.of(analysis.plan, Provider.TORCH)).gm,
        analysis.plan,
        Provider.TORCH,
    )
    return lowered, kinds_of_parts


def kinds_of_parts(gm: GraphModule) -> Sequence[GraphModule]:
    parts = split_at_reads(gm)
    assert not isinstance(parts, NotSplit)
    return list({part.token: part.gm for part in reversed(parts)}.values())[::-1]


PAIRS: dict[str, Callable[[], tuple[GraphModule, Pass]]] = {
    "inline/open_regions": of_open_regions,
    "inline/close_regions": of_close_regions,
    "inline/norms_apart": of_norms_apart,
    "rewrite/rewrite_piece": of_rewrite_piece,
    "rewrite/record": of_record,
    "ranks/shard_sequence": of_shard_sequence,
    "ranks/stages": of_stages,
    "ranks/split_stages": of_split_stages,
    "schedule/schedule": of_schedule,
    "schedule/fuse": of_fuse,
    "lower/lower": of_lower,
    "lower/split_at_reads": of_split_at_reads,
    "lower/bind_torch": of_bind_torch,
    "lower/bind_kernels": of_bind_kernels,
}
"""By the pass's file in attnres_passes: a graph, and the pass on it, which gives one graph or one for each chunk."""


def text_of(gm: GraphModule) -> str:
    """The text of a graph, without line numbers, and with short names for parameters."""
    text = re.sub(r"(test_pairs\.py):\d+", r"\1:N", graph_text(gm))
    return re.sub(r"l_self_modules_(\w+?)_parameters_(\d)_", r"\1_weight_\2", text)


@pytest.mark.parametrize("name", PAIRS)
def test_before_and_expected(name: str) -> None:
    before, run = PAIRS[name]()
    text, metadata = text_of(before), [dict(node.meta) for node in before.graph.nodes]
    made = run(before)
    assert text_of(before) == text, "the pass changed the graph that it was given"
    assert [node.meta for node in before.graph.nodes] == metadata
    for gm in (before, *made):
        assert_text_is_the_graph(gm)
    headings = ["expected"] if len(made) == 1 else [f"expected, chunk {index}" for index in range(len(made))]
    parts = zip(["before", *headings], [text, *map(text_of, made)], strict=True)
    check_golden(f"passes/{name}", "\n".join(f"# {heading}\n\n{part}" for heading, part in parts))


def passes() -> Iterator[str]:
    """The files of attnres_passes whose docstrings say that they are passes."""
    root = Path(attnres_passes.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if (ast.get_docstring(ast.parse(path.read_text())) or "").startswith("Pass:"):
            yield path.relative_to(root).with_suffix("").as_posix()


def test_every_pass_has_a_pair() -> None:
    assert {*PAIRS, "rewrite/rewrite"} == set(passes())
    assert test_rewrite.BEFORE != test_rewrite.EXPECTED
    goldens = (GOLDEN / "passes").rglob("*.txt")
    assert {path.relative_to(GOLDEN / "passes").with_suffix("").as_posix() for path in goldens} == set(PAIRS)
