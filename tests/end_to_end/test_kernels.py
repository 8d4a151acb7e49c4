"""Models on generated kernels, in Triton's interpreter, against the definition: outputs and every gradient."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.utils._pytree import tree_leaves

import attnres_compile as ac
from attnres_compile.api.prepare import config_from
from attnres_compile.capture.analysis import AnalysedGraph, analyse_model
from attnres_compile.compile import graph_runs
from attnres_compile.compile.levels import run_passes_under
from attnres_kernels.autograd import generated_reads, keys, own_logits_reads
from attnres_kernels.definition import scheduled
from attnres_kernels.launch import launch_own_logits_read, launch_phase_1, launch_read
from attnres_passes.ir.config import ConfigError
from attnres_passes.pipeline import GraphLevels
from attnres_passes.schedule import schedule
from attnres_passes.schedule.group_reads import Group, ReadGroups
from attnres_passes.schedule.provider import Provider
from tests import zoo
from tests.end_to_end.models import PreNorm, randomize, tokens

pytestmark = pytest.mark.interpreter

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_KERNELS", "triton")


def passed(
    model: nn.Module, args: tuple, kwargs: dict, differentiates: bool = True, **options: object
) -> tuple[AnalysedGraph, GraphLevels]:
    config = config_from(None, options)
    graph = next(x for x in analyse_model(model, args, kwargs, config) if x.analysis.plan.streams)
    return graph, run_passes_under(graph, config, differentiates=differentiates)


def outputs_and_gradients(gm: GraphModule, graph: AnalysedGraph, added: list[Tensor]) -> list[Tensor | None]:
    leaves = [x.clone().requires_grad_() for x in added]
    torch.manual_seed(0)
    results = tree_leaves(Interpreter(gm).run(*graph.captured.inputs, *leaves))
    outputs = [x for x in results if isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(x.shape, generator=generator) for x in outputs]
    parameters = [x for x in graph.captured.inputs if isinstance(x, nn.Parameter) and x.requires_grad]
    gradients = torch.autograd.grad(outputs, [*leaves, *parameters], directions, allow_unused=True)
    return [*(x.detach() for x in outputs), *gradients]


AUTO = {"schedule": "auto", "block_size": 2}
DIRECT = {"schedule": "direct", "block_size": 2, "scale": "sum"}
TWO_PHASE = {"schedule": "two_phase", "block_size": 3}
FULL = {"schedule": "two_phase", "block_size": 1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("hf_gpt2", options) for options in (AUTO, DIRECT, TWO_PHASE, FULL)),
        ("hf_llama", AUTO),
        ("hf_llama", FULL | {"scale": "sum"}),
        ("hf_whisper", AUTO),
        ("toy_parallel_two_norms", TWO_PHASE),
        ("toy_parallel_two_norms", DIRECT),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value['schedule']}-{value['block_size']}",
)
def test_outputs_and_every_gradient(name: str, options: dict) -> None:
    model, args, kwargs = zoo.by_name(name).build()
    graph, found = passed(model, args, kwargs, **options)
    assert found.choice.provider is Provider.TRITON
    assert any(node.target is generated_reads.read for node in found.lowered.graph.nodes)
    assert_levels_agree(graph, found)


def assert_levels_agree(graph: AnalysedGraph, found: GraphLevels) -> None:
    """The scheduled and the lowered graph give the outputs and gradients of the rewritten one."""
    added = graph_runs.random_parameters(found.rewritten, graph)
    expected = outputs_and_gradients(found.rewritten, graph, added)
    # A gradient far smaller than the others is a difference of larger numbers.
    smallest = 0.02 * max(x.abs().max() for x in expected if x is not None)
    for gm in (found.scheduled.gm, found.lowered):
        actual = outputs_and_gradients(gm, graph, added)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert (one - other).abs().max() <= TOLERANCE * other.abs().max().clamp_min(smallest)


def test_a_pass_of_the_backward_serves_reads_of_several_groups() -> None:
    graph, found = passed(PreNorm(layers=12), (tokens(),), {}, block_size=3, schedule="two_phase")
    groups = [(group.first, len(group.completed)) for group in found.scheduled.read_groups[0][0].groups]
    assert groups == [(0, 2), (2, 3), (5, 3), (8, 3), (11, 1)]
    (made,) = found.lowered.graph.find_nodes(op="call_function", target=keys.key_matrix)
    assert made.args[2] == [(0, 2), (2, 3), (5, 7), (8, 4), (11, 1)], "the reads of each set of blocks"
    assert_levels_agree(graph, found)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hf_gpt2", {"block_size": 2}),
        ("hf_llama", {"block_size": 1, "scale": "sum"}),
        ("toy_parallel_two_norms", {"block_size": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value["block_size"]),
)
def test_reads_of_few_tokens_make_their_own_logits_where_nothing_is_differentiated(name: str, options: dict) -> None:
    """They have gradients all the same, which are compared too."""
    graph, found = passed(*zoo.by_name(name).build(), differentiates=False, **options)
    targets = [node.target for node in found.lowered.graph.nodes]
    assert targets.count(own_logits_reads.own_logits_read) == len(graph_runs.read_nodes(found.rewritten))
    assert not {generated_reads.read, generated_reads.source_logits, keys.key_matrix} & set(targets)
    assert "own logits" in found.schedule_text()
    assert_levels_agree(graph, found)


def test_both_kinds_of_reads_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits made first for the first reads, of which the last has a phase 1; the others make their own."""
    first = (Group(0, (1, 1, 2, 2, 2), 0), Group(5, (3, 3), 3))
    cut = (*first, Group(7, (3, 4, 4, 4, 5), 0, own_logits=True))
    monkeypatch.setattr(schedule, "group_reads", lambda *_: ReadGroups(cut))
    graph, found = passed(PreNorm(layers=12), (tokens(),), {}, differentiates=False, block_size=3)
    targets = [node.target for node in found.lowered.graph.nodes]
    assert (targets.count(generated_reads.read), targets.count(own_logits_reads.own_logits_read)) == (7, 5)
    assert targets.count(generated_reads.source_logits) + targets.count(generated_reads.complete_block) == 3
    assert_levels_agree(graph, found)


def test_a_decode_step_launches_one_kernel_per_read(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    for module in (launch_own_logits_read, launch_phase_1, launch_read):
        honest = module.launchable
        monkeypatch.setattr(
            module, "launchable", lambda text, *rest, honest=honest: launched.append(text) or honest(text, *rest)
        )
    model, ids = PreNorm(layers=6).eval(), tokens(1, 1)
    plan = ac.prepare(model, (ids,), block_size=2)
    randomize(model)
    model.compile(backend="attnres", options={"inner": "aot_eager"})
    with torch.no_grad():
        found = model(ids)
    assert len(launched) == len(plan.streams[0].parametrized_reads)
    assert all("def own_read" in text for text in launched)
    assert sum("branch," in text for text in launched) == 3, "the adds that complete the three blocks"
    launched.clear()
    assert torch.allclose(found, model(ids), atol=1e-6), "with gradients, which is another graph"
    assert not any("def own_read" in text for text in launched)


def test_norms_adds_and_blocks_are_fused() -> None:
    model, args, kwargs = zoo.by_name("hf_llama").build()
    _, found = passed(model, args, kwargs, block_size=3)
    reads = found.rewritten.graph.find_nodes(op="call_function", target=torch.ops.attnres.depth_attention.default)
    assert found.fused is not None
    assert found.fused.norms == len(reads)
    assert found.fused.adds > 0
    assert found.fused.blocks > 0
    left = [node.target for node in found.scheduled.gm.graph.nodes]
    assert scheduled.merge not in left
    assert scheduled.direct_read not in left
    assert left.count(torch.rsqrt) == 1, "the norm of the root, which is the only source of its read"
    # A fused kernel writes no value that only its norm reads.
    assert not [
        item
        for node in found.lowered.graph.nodes
        if node.target is generated_reads.read
        for item in node.users
        if item.meta["attnres"].kind == "read"
    ]


def test_a_norm_that_is_not_fused_says_why() -> None:
    class ScaledNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / (x.std(-1, keepdim=True) + 1e-3)

    model = PreNorm()
    model.norm = ScaledNorm()
    _, found = passed(model, (tokens(),), {}, block_size=1)
    assert found.fused is not None
    assert len(found.fused.not_fused) == 1
    assert "norm not fused" in found.schedule_text()


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_compiled_model_trains_and_makes_phase_1_again(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, phase 1's outputs are not kept for the backward: it runs once more there."""
    calls: list[int] = []
    honest = launch_phase_1.phase_1
    monkeypatch.setattr(launch_phase_1, "phase_1", lambda *args: calls.append(1) or honest(*args))
    model = PreNorm(layers=4)
    ids = tokens()
    ac.prepare(model, (ids,), block_size=2, schedule="two_phase")
    randomize(model)
    model.compile(backend="attnres", options={"inner": inner})
    loss = model(ids).square().mean()
    forward = len(calls)
    assert forward > 0
    loss.backward()
    assert len(calls) == 2 * forward
    compiled = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    torch.compiler.reset()
    monkeypatch.setenv("ATTNRES_KERNELS", "torch")
    other = model(ids).square().mean()
    other.backward()
    assert torch.allclose(loss, other, rtol=1e-5)
    for gradient, parameter in zip(compiled, model.parameters(), strict=True):
        assert (gradient - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max()


def test_two_runs_give_the_same_bits() -> None:
    model, args, kwargs = zoo.by_name("hf_llama").build()
    graph, found = passed(model, args, kwargs, block_size=3)
    added = graph_runs.random_parameters(found.rewritten, graph)
    runs = [outputs_and_gradients(found.lowered, graph, added) for _ in range(2)]
    assert all(x is None or torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_verification_goes_through_the_kernels() -> None:
    model, args, kwargs = zoo.by_name("hf_gpt2").build()
    found = ac.verify(model, args, kwargs, num_blocks=2)
    assert found.passed
    assert "random queries, schedule=auto, no gradients = definition" in [check.name for check in found.checks]


def test_the_explained_schedule_is_that_of_the_grad_mode() -> None:
    model, ids = PreNorm(), tokens()
    assert "own logits" not in ac.explain(model, (ids,)).schedule
    with torch.no_grad():
        assert "own logits" in ac.explain(model, (ids,)).schedule


def test_what_reads_run_on_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,))
    model.compile(backend="attnres", options={"inner": "eager"})
    with caplog.at_level(logging.INFO, logger="attnres_compile"):
        model(ids)
    assert "reads on triton (ATTNRES_KERNELS=triton)" in caplog.text


def test_dump_holds_the_kernels_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_DUMP", str(tmp_path))
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,))
    model.compile(backend="attnres", options={"inner": "eager"})
    model(ids)
    texts = [path.read_text() for path in (tmp_path / "kernels").iterdir()]
    assert any("def read_" in text for text in texts)
    assert all("@triton.jit" in text for text in texts)
    (schedule,) = tmp_path.glob("*schedule.txt")
    assert "norms fused with reads" in schedule.read_text()


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [("cuda", torch.float32, "neither 'triton' nor 'torch'"), ("triton", torch.float64, "a stream is float64")],
)
def test_what_kernels_cannot_do_is_an_error(
    value: str, dtype: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNRES_KERNELS", value)
    with pytest.raises(ConfigError, match=words):
        ac.explain(PreNorm().to(dtype), (tokens(),))
