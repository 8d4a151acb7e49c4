"""What is counted on models without data, against closed forms, whole graphs, and the kernels themselves."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch.fx import Interpreter

from attnres_compile.capture.analysis import analyse_model
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from attnres_compile.report.counting.execution import count
from attnres_compile.report.counting.model_counts import Lengths, model_graphs, total
from attnres_compile.report.rows.computation import flop_rows, launch_rows, saved_rows
from attnres_compile.report.rows.memory import pipeline_rows, prefill_bytes, storage_rows
from attnres_compile.report.rows.traffic import io_rows
from attnres_kernels.generation.traffic import Traffic, traffic_of
from attnres_kernels.launch import launch_own_logits_read, launch_phase_1, launch_read, launch_sources_backward, tiling
from attnres_kernels.launch.split_sources_backward import traffic_of_launches
from attnres_passes.cost.traffic import plain_traffic, traffic
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.lower.gradient_sets import gradient_passes
from attnres_passes.lower.lower import lower
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.rewrite.rewrite import rewrite
from attnres_passes.schedule.fuse import fuse
from attnres_passes.schedule.group_reads import group_reads
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.schedule import schedule
from tests.attnres_compile.report.models import PreNorm, toy_counts

# Width, tokens, sublayers, block size.
SHAPES = [(8, 3, 6, 2), (16, 5, 7, 3), (8, 4, 5, 1), (32, 2, 12, 4), (8, 6, 9, 9)]


def completed_and_open(writes: int, size: int) -> list[tuple[int, int]]:
    """Of each read with two sources or more: completed blocks, the root among them, and writes in the open block."""
    return [(1 + state // size, state % size) for state in range(1, writes + 1)]


def residual_path_flops(width: int, tokens: int, writes: int, size: int) -> tuple[int, int]:
    """Forward and backward of the reads on kernels, by what each kernel sums up over a row."""
    reads = completed_and_open(writes, size)
    numbers = [completed for completed, _ in reads]
    forward, backward = 0, 0
    for block in range(max(numbers)):  # logits: a square sum, and a product with each later read
        forward += len(reads) - next(k for k, n in enumerate(numbers) if n > block) + 1
    for group in group_reads(numbers, "auto", tiling.most_in_place(width)).groups:
        count_of = len(group.completed)
        forward += group.shared * count_of
        backward += group.shared * count_of if group.shared else 0
        for n, (_, is_open) in zip(group.completed, reads[group.first : group.first + count_of], strict=True):
            parts = n - group.shared + bool(group.shared) + bool(is_open)
            forward += parts + 2 * bool(is_open)
            backward += parts + 1 + 5 * bool(is_open)
    for found in gradient_passes(numbers, partial(traffic_of_launches, width=width)):
        # A block: its squares and its own term, once for all reads of a set; four per read.
        backward += sum((of_set.stop - of_set.start) * (2 + 4 * of_set.reads) for of_set in found.sets)
    # Phase 1 is made again by the inner compiler, which the graph that is counted here leaves to it.
    backward -= sum(
        group.shared * len(group.completed)
        for group in group_reads(numbers, "auto", tiling.most_in_place(width)).groups
        if group.shared
    )
    return 2 * forward * tokens * width, 2 * backward * tokens * width


@pytest.mark.parametrize(("width", "tokens", "writes", "size"), SHAPES)
def test_counted_flops_equal_closed_forms(width: int, tokens: int, writes: int, size: int) -> None:
    found = toy_counts(width, tokens, writes, block_size=size)
    forward, training = flop_rows(found)
    products = writes * 2 * tokens * width * width
    assert (forward.plain, training.plain) == (products, 3 * products)
    added, added_backward = residual_path_flops(width, tokens, writes, size)
    assert forward.delta == added
    assert training.delta == added + added_backward


def test_counted_flops_of_a_decoder_equal_closed_forms() -> None:
    """llama-tiny: 4 layers of width 64, 4 heads of 16 and 2 for keys and values, an MLP of 176, 256 words."""
    tokens, d, kv, mlp, words, layers = 48, 64, 32, 176, 256, 4
    loaded = load_model("llama-tiny", LoadOptions(seq=tokens, weightless=True))
    forward, training = flop_rows(model_graphs(loaded.model, (), loaded.kwargs, AttnResConfig()).count(Lengths()))
    linear = 2 * tokens * (layers * (2 * d * d + 2 * d * kv + 3 * d * mlp) + d * words)
    attention = layers * 2 * 2 * tokens * tokens * d
    assert forward.plain == linear + attention
    assert training.plain == 3 * linear + attention * 7 / 2


def test_a_mixture_and_a_depthwise_convolution_are_counted() -> None:
    """Products of experts by the rows that they are given, and a convolution's backward by its groups."""
    from torch.utils.flop_counter import FlopCounterMode

    from attnres_compile.report.counting.formulas import FORMULAS

    rows, inner, outer, channels, length, kernel = 6, 8, 16, 5, 7, 3
    with torch.device("meta"):
        x = torch.empty(rows, inner, dtype=torch.bfloat16, requires_grad=True)
        experts = torch.empty(4, inner, outer, dtype=torch.bfloat16, requires_grad=True)
        ends = torch.empty(4, dtype=torch.int32)
        signal = torch.empty(1, channels, length, requires_grad=True)
        weight = torch.empty(channels, 1, kernel, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        out = torch._grouped_mm(x, experts, ends)
        out.backward(torch.empty_like(out))
    assert counter.get_total_flops() == 3 * 2 * rows * inner * outer
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        torch.nn.functional.conv1d(signal, weight, groups=channels).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * channels * (length - kernel + 1) * kernel


@pytest.mark.parametrize("name", ["gpt2-tiny", "t5-tiny"])
def test_the_residual_path_alone_counts_and_moves_what_the_whole_graph_does(name: str) -> None:
    loaded = load_model(name, LoadOptions(seq=16, weightless=True))
    config = AttnResConfig(num_blocks=3)
    found = model_graphs(loaded.model, (), loaded.kwargs, config).count(Lengths())
    (graph,) = analyse_model(loaded.model, (), loaded.kwargs, config)
    plan = graph.analysis.plan
    kernels = ProviderChoice.of(plan, Provider.TRITON)
    whole = fuse(schedule(rewrite(graph.captured.gm, graph.analysis).gm, plan, kernels).gm, plan).gm
    assert traffic(whole, plan) == found.traffic["auto"]
    lowered = lower(whole, plan, Provider.TRITON)
    widths = [
        plan.streams[annotation.stream].width
        for node in lowered.graph.nodes
        if node.op == "placeholder" and (annotation := annotation_of(node)) is not None
    ]
    added = [torch.empty(width, device="meta", requires_grad=True) for width in widths]
    counted = count(lowered, [*graph.captured.inputs, *added])
    for field in ("forward", "training"):
        assert getattr(counted, field) == total(found.plain, field) + total(found.residual_path, field)
    assert counted.launches == found.residual_path[0].launches


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["direct", "two_phase", "auto"])
def test_counted_traffic_and_launches_are_those_of_the_kernels_that_run(name: str, monkeypatch) -> None:
    """The graph runs in Triton's interpreter, and every text that is launched is charged by its spec."""
    charged: list[Traffic] = []
    launches: list[str] = []

    def watch(module: object, function: str, of_spec: object) -> None:
        original = getattr(module, function)

        def called(spec):
            launches.append(function)
            if of_spec is not None:
                charged.append(of_spec(spec))
            return original(spec)

        monkeypatch.setattr(module, function, called)

    watch(launch_phase_1, "logits_text", traffic_of)
    watch(launch_phase_1, "phase_1_text", traffic_of)
    watch(launch_read, "read_text", traffic_of)
    for module, function in ((launch_read, "read_backward_text"), (launch_sources_backward, "gradients_text")):
        watch(module, function, None)
    watch(launch_sources_backward, "keys_text", None)

    width, writes = 8, 6
    model, x = PreNorm(width, writes), torch.randn(1, 3, width)
    (graph,) = analyse_model(model, (x,), {}, AttnResConfig(block_size=2, schedule=name))
    plan = graph.analysis.plan
    kernels = ProviderChoice.of(plan, Provider.TRITON)
    gm = fuse(schedule(rewrite(graph.captured.gm, graph.analysis).gm, plan, kernels).gm, plan).gm
    added = [torch.ones(width, requires_grad=True) for _ in range(2 * writes)]
    outputs = Interpreter(lower(gm, plan, Provider.TRITON)).run(*graph.captured.inputs, *added)
    forward = len(launches)
    outputs[0].sum().backward()

    found = toy_counts(width, 3, writes, block_size=2, schedule=name)
    by_kernels = sum(charged, Traffic(0, 0))
    norm_of_root = Traffic(1, 1)
    assert by_kernels + norm_of_root == found.traffic[name][0]
    assert found.residual_path[0].launches == (forward, len(launches))


@pytest.mark.interpreter
def test_counted_traffic_of_reads_with_own_logits_is_that_of_their_kernels(monkeypatch) -> None:
    charged: list[Traffic] = []
    honest = launch_own_logits_read.own_logits_read_text

    def called(spec):
        charged.append(traffic_of(spec))
        return honest(spec)

    monkeypatch.setattr(launch_own_logits_read, "own_logits_read_text", called)
    width, writes = 8, 6
    (graph,) = analyse_model(PreNorm(width, writes), (torch.randn(1, 3, width),), {}, AttnResConfig(block_size=2))
    plan = graph.analysis.plan
    kernels = ProviderChoice.of(plan, Provider.TRITON, differentiates=False)
    gm = fuse(schedule(rewrite(graph.captured.gm, graph.analysis).gm, plan, kernels).gm, plan).gm
    added = [torch.ones(width) for _ in range(2 * writes)]
    Interpreter(lower(gm, plan, Provider.TRITON)).run(*graph.captured.inputs, *added)
    assert len(charged) == writes
    assert traffic(gm, plan) == (sum(charged, Traffic(1, 1)),), "the norm of the root beside them"


def test_the_papers_table_beside_what_is_counted() -> None:
    """128 sublayers in 8 blocks of 16: 3 d, 5.5 d, 24 d and 34 d, and where the counted numbers differ from them."""
    found = toy_counts(7168, 1, 128, num_blocks=8, schedule="two_phase")
    rows = {row.metric: row for row in io_rows(found)}
    d = rows["residual I/O per token and sublayer"].unit_size
    block = rows["paper: Block, two-phase, N=8 S=16"]
    assert (block.plain / d, block.attnres / d) == (3, 5.5)
    assert rows["paper: Full, two-phase, N=8 S=16"].attnres / d == 24
    assert rows["paper: mHC with 4 streams"].attnres / d == pytest.approx(34, abs=0.01)

    counted = rows["residual I/O per token and sublayer, two-phase"]
    difference = (
        129  # the output of every norm
        + (sum(range(1, 10)) - 8 * 8)  # phase 1 reads the blocks that there are, for the final norm nine
        - 2 * 8  # the first sublayer of a block adds to nothing: no partial sum is read there, and none written
        + 2  # the root is read for its logits and by the first norm
    )
    assert counted.attnres / d * 128 == pytest.approx(128 * 5.5 + difference)
    # 3 d and the output of the norm; the first norm reads the root.
    assert counted.plain / d * 128 == pytest.approx(128 * 4 + 2)
    full = rows["residual I/O per token and sublayer, Full, auto"].attnres / d
    assert counted.attnres / d < full < rows["residual I/O per token and sublayer, naive"].attnres / d


def test_parallel_sublayers_read_one_state_twice() -> None:
    """A second norm of the same state reads it again; the first is fused with the addition."""
    found = toy_counts(8, 2, 4)
    (stream,) = found.plan.streams
    twice = dataclasses.replace(stream, reads=(*stream.reads, stream.reads[2]))
    assert plain_traffic(twice).total - plain_traffic(stream).total == 2


def test_saved_activations_by_hand() -> None:
    """6 sublayers in blocks of 2, fp32: every sum and block once, statistics and logits, and no phase 1."""
    width, tokens, writes = 64, 4, 6
    found = toy_counts(width, tokens, writes, block_size=2)
    kept, again = saved_rows(found)
    state = width * tokens * 4
    # Layer norms keep their input, the linear map behind each keeps its output; the root is an input of the graph.
    statistics = 2 * (writes + 1) * tokens * 4
    assert kept.plain == (writes + writes) * state + statistics
    reads = writes
    logits = sum(reads - first for first in (0, 1, 3, 5)) * tokens * 4
    per_read = 5 * tokens * 4
    vectors = kept.delta + (writes + 1) * state - (writes + 1) * state - logits - reads * per_read
    # What is left are the keys of the reads, vectors whatever the number of tokens.
    assert 0 < vectors <= 3 * reads * width * 4
    assert (again.plain, again.attnres) == ((writes + 1) * state, (writes + 1) * state)


def test_what_is_scaled_equals_what_is_counted_at_that_length() -> None:
    def rows(seq: int, lengths: Lengths) -> list[tuple[float | None, ...]]:
        loaded = load_model("llama-tiny", LoadOptions(seq=seq, weightless=True))
        found = model_graphs(loaded.model, (), loaded.kwargs, AttnResConfig()).count(lengths)
        return [(row.plain, row.attnres) for row in flop_rows(found)]

    assert rows(32, Lengths(32, 128)) == rows(128, Lengths())
    assert rows(32, Lengths()) != rows(128, Lengths())


def test_a_frozen_model_has_no_training_flops_and_says_so() -> None:
    with torch.device("meta"):
        model, x = PreNorm(8, 4).requires_grad_(False), torch.empty(1, 3, 8)
    found = model_graphs(model, (x,), {}, AttnResConfig()).count(Lengths())
    _, training = flop_rows(found)
    assert (training.how, training.plain) == ("n/a", None)
    assert "wants a gradient" in training.note
    assert saved_rows(found)[0].how == "n/a"


def test_what_kernels_cannot_hold_is_no_launch_and_says_why() -> None:
    with torch.device("meta"):
        model, x = PreNorm(8, 4).double(), torch.empty(1, 3, 8, dtype=torch.float64)
    (row,) = launch_rows(model_graphs(model, (x,), {}, AttnResConfig()).count(Lengths()))
    assert (row.how, row.attnres) == ("n/a", None)
    assert row.note == "no generated kernels: a stream is float64, and the kernels compute in fp32"


class NeedsData(PreNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * int(x.abs().max().item() > -1))


def test_a_model_that_needs_data_is_planned_with_it_and_not_counted() -> None:
    found = model_graphs(NeedsData(8, 4), (torch.randn(1, 3, 8),), {}, AttnResConfig(on_decline="ignore")).count(
        Lengths()
    )
    forward, _ = flop_rows(found)
    assert forward.how == "n/a"
    assert "not captured without data" in forward.note
    assert found.plan.streams


def test_stored_blocks_and_the_papers_prefill() -> None:
    (row,) = storage_rows(toy_counts(8, 2, 16, block_size=2))
    assert (row.plain, row.attnres) == (32, 9 * 32), "the embedding and eight blocks"
    # Section 4.2: 128K tokens, 8 blocks, width 7168 in bf16.
    one, eight = (prefill_bytes(128 * 1024, 8, 7168 * 2, ranks) for ranks in (1, 8))
    assert one == pytest.approx(15e9, rel=0.01)
    assert eight == pytest.approx(1.9e9, rel=0.02)
    assert prefill_bytes(16 * 1024, 8, 7168 * 2, 8) < 0.3e9


def test_pipeline_of_the_papers_figure() -> None:
    """P=4, V=2, a block per two chunks (Fig. 3): 7 hops with the root, 12 blocks and 4 open partial sums."""
    found = toy_counts(8, 5, 16, num_blocks=4)
    rows = {row.metric: row for row in pipeline_rows(found, StageLayout(4, 2))}
    unit = 8 * 5 * 4
    naive, cached = (rows[f"pipeline, training step, {rule}"] for rule in ("naive", "cached"))
    assert naive.plain == cached.plain == 2 * 7 * unit
    assert naive.attnres == 2 * (7 + 12 + 4) * unit
    # The second time around every rank has the root, and the ranks after the first have 1, 1 and 2 blocks.
    assert naive.attnres - cached.attnres == 2 * (4 + 4) * unit
    assert rows["pipeline, fullest hop, cached"].attnres < rows["pipeline, fullest hop, naive"].attnres
