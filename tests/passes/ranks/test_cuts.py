"""Cuts of a stream into chunks: evenly, by cost against all possibilities, and at named modules; and FLOPs."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnres_passes.ir.plan import Read, Stream, Write
from attnres_passes.ranks.cuts import balanced_cuts, cuts_at_modules, even_cuts, possible_cuts, sublayer_flops
from attnres_passes.ranks.layout import StageError
from attnres_passes.ranks.positions import positions_of
from attnres_passes.ranks.stages import trace_rewritten
from tests.passes.helpers import rewritten


def stream_of(modules: list[str], read_states: list[int] | None = None) -> Stream:
    writes = tuple(Write(module, "", 1) for module in modules)
    states = range(len(modules) + 1) if read_states is None else read_states
    reads = tuple(Read("", "", 2, 1, state, True) for state in states)
    return Stream("h", 8, writes, reads, len(modules), 1)


GPT = [f"h.{layer}.{part}" for layer in range(4) for part in ("attn", "mlp")]


@given(st.integers(1, 200), st.data())
def test_even_cuts_differ_by_one(writes: int, data: st.DataObject) -> None:
    chunks = data.draw(st.integers(1, writes))
    cuts = even_cuts(writes, chunks)
    sizes = {after - before for before, after in pairwise(cuts)}
    assert (cuts[0], cuts[-1], len(cuts)) == (0, writes, chunks + 1)
    assert sizes <= {writes // chunks, -(-writes // chunks)}


@settings(deadline=None)
@given(st.data())
def test_balanced_cuts_against_all(data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    states = data.draw(st.sets(st.integers(1, len(costs) - 1))) if len(costs) > 1 else set()
    stream = stream_of([""] * len(costs), sorted({0, *states}))
    chunks = data.draw(st.integers(1, len(states) + 1))

    def quality(cuts: tuple[int, ...]) -> tuple[int, int]:
        sums = [sum(costs[before:after]) for before, after in pairwise(cuts)]
        return max(sums), sum(cost * cost for cost in sums)

    best = min(quality((0, *inner, len(costs))) for inner in combinations(sorted(states), chunks - 1))
    found = balanced_cuts(stream, chunks, costs)
    assert quality(found) == best
    assert set(found[1:-1]) <= states
    assert len(set(found)) == chunks + 1


def test_an_expensive_head_takes_sublayers_off_the_last_chunk() -> None:
    assert balanced_cuts(stream_of(GPT), 2, [1] * 8) == (0, 4, 8)
    assert balanced_cuts(stream_of(GPT), 2, [1] * 7 + [5]) == (0, 6, 8)


def test_parallel_sublayers_stay_together() -> None:
    stream = stream_of(GPT, [0, 2, 4, 6, 8])
    assert possible_cuts(stream) == (2, 4, 6)
    assert balanced_cuts(stream, 4, [1, 9] * 4) == (0, 2, 4, 6, 8)
    with pytest.raises(StageError, match="both belong to one chunk"):
        cuts_at_modules(stream, 2, ["h.1.mlp"])
    with pytest.raises(StageError, match="5 chunks for 4 sublayers that can be cut apart"):
        balanced_cuts(stream, 5, [1] * 8)


def test_cuts_at_modules() -> None:
    assert cuts_at_modules(stream_of(GPT), 3, ["h.1", "h.2.mlp"]) == (0, 2, 5, 8)
    assert cuts_at_modules(stream_of(GPT), 1, []) == (0, 8)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["h.1"], "1 cut points for 3 chunks"),
        (["h.2", "h.1"], "the cut at 'h.1' leaves no sublayer before it; name modules in their order"),
        (["h.0", "h.1"], "the cut at 'h.0' leaves no sublayer before it"),
        (["h.1", "h.2.mpl"], "no sublayer of stream 'h' is inside 'h.2.mpl'; did you mean 'h.2.mlp'?"),
        (["h.1", "g.3"], "did you mean 'h.3'?"),
    ],
)
def test_cut_points_that_are_refused(paths: list[str], message: str) -> None:
    with pytest.raises(StageError) as caught:
        cuts_at_modules(stream_of(GPT), 3, paths)
    assert message in str(caught.value)


def test_more_chunks_than_sublayers() -> None:
    for attempt in (lambda: even_cuts(3, 4), lambda: balanced_cuts(stream_of(GPT), 9, [1] * 8)):
        with pytest.raises(StageError, match="every chunk needs one, so take fewer stages or fewer virtual stages"):
            attempt()


def test_flops_of_all_sublayers_are_those_of_the_counter() -> None:
    """Balanced by what torch counts on meta, attention included, with an expensive sublayer and an expensive head."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.ModuleList(nn.LayerNorm(8) for _ in range(5))
            self.up = nn.ModuleList(nn.Linear(8, size) for size in (8, 8, 64, 8))
            self.down = nn.ModuleList(nn.Linear(size, 8) for size in (8, 8, 64, 8))
            self.head = nn.Linear(8, 100)

        def forward(self, x: Tensor) -> Tensor:
            for k in range(4):
                inner = self.up[k](self.norm[k](x))
                if k == 1:
                    inner = F.scaled_dot_product_attention(inner[:, None], inner[:, None], inner[:, None])[:, 0]
                x = x + self.down[k](inner)
            return self.head(self.norm[4](x))

    _, analysis, result = rewritten(Model(), torch.randn(2, 6, 8), block_size=2)
    positions = positions_of(result.gm, analysis.plan)
    trace = trace_rewritten(result.gm, analysis.plan)
    flops = sublayer_flops(trace, positions.of, list(result.gm.graph.nodes), 4)
    with FlopCounterMode(display=False) as counter:
        Model().to("meta")(torch.randn(2, 6, 8, device="meta"))
    tokens, read = 12, lambda sources: 3 * 2 * sources * 12 * 8
    reads = read(2) + read(2) + read(3) + read(3)  # after write 1, .. 4; none is made of the root alone
    assert sum(flops) == counter.get_total_flops() + reads
    assert flops[0] == 2 * 2 * tokens * 8 * 8
    assert flops[1] == flops[0] + 2 * 2 * 2 * 6 * 6 * 8 + read(2)
    assert flops[2] == 2 * 2 * tokens * 8 * 64 + read(2)
    assert flops[3] == 2 * 2 * tokens * 8 * 8 + 2 * tokens * 8 * 100 + read(3) + read(3)
