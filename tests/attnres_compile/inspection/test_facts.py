"""The facts are those of plan and graphs: sites, schedules, kernels, graph breaks, the verdict."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

import attnres_compile as ac
from attnres_compile.inspection.facts.build import inspection_of
from attnres_compile.inspection.facts.facts import Inspection, Verdict
from attnres_compile.inspection.fold.folding import fold_streams
from attnres_compile.inspection.text.inspection_text import inspection_text
from attnres_passes.ir.annotations import annotate, annotation_of
from attnres_passes.ir.levels import SCHEDULED_READS, is_ours
from tests.attnres_compile.inspection.models import explained
from tests.end_to_end.models import PreNorm, tokens
from tests.zoo import toys


def facts(name: str) -> Inspection:
    return explained(name).inspection


def test_sites_are_those_of_the_plan() -> None:
    explanation = explained("toy_encoder_decoder")
    for stream, facts_of in zip(explanation.plan.streams, explanation.inspection.streams, strict=True):
        writes = [site for site in facts_of.sites if site.kind == "write"]
        reads = [site for site in facts_of.sites if site.kind == "read"]
        assert [(w.module, w.source, w.block) for w in writes] == [(w.module, w.source, w.block) for w in stream.writes]
        assert [(r.module, r.source, r.sources, r.state, r.normed) for r in reads] == [
            (r.module, r.source, r.num_sources, r.state, r.normed) for r in stream.reads
        ]
        states = [site.state for site in facts_of.sites]
        assert states == sorted(states)
    shapes = [{site.shape for site in stream.sites} for stream in explanation.inspection.streams]
    assert shapes == [{"f32[2, 12, 32]"}, {"f32[2, 9, 32]"}]


def test_a_read_behind_the_last_block_is_in_none() -> None:
    last = facts("deep_6").streams[0].sites[-1]
    assert (last.module, last.block, last.sources) == ("norm", None, 7)


@pytest.mark.parametrize("schedule", ["two_phase", "direct", "naive"])
def test_schedules(schedule: str) -> None:
    found = ac.explain(PreNorm(), (tokens(),), schedule=schedule).inspection
    sites = found.streams[0].sites
    assert {site.schedule for site in sites if (site.sources or 0) > 1} == {schedule}
    assert {site.schedule for site in sites if (site.sources or 0) < 2} == {None}


def test_pipeline_stages_are_those_of_the_nodes() -> None:
    """Without stages there is no such column; with them, a site has the stage of its node."""
    explanation = ac.explain(PreNorm(), (tokens(),))
    assert "stage" not in explanation.report()
    for gm in (explanation.after, explanation.scheduled):
        for node in gm.graph.nodes:
            annotation = annotation_of(node)
            if annotation is not None and annotation.sublayer is not None:
                annotate(node, dataclasses.replace(annotation, stage=annotation.sublayer // 2))
    found = inspection_of(explanation.plan, explanation.graphs, ())
    placed = [(site.state, site.stage) for site in found.streams[0].sites if site.state]
    assert placed == [(state, state // 2) for state, _ in placed]
    lines = inspection_text(fold_streams(found)).splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("write")] == ["0", "1"], (
        "the last two layers are folded"
    )


def test_the_added_parameters_are_not_decayed() -> None:
    model = PreNorm()
    ac.prepare(model, (tokens(),))
    *_, ours = ac.param_groups(model, lr=0.1, weight_decay=0.1)
    assert {one.decay for one in facts("mixed").parameters} == {f"{ours['weight_decay']:g} (group {ours['name']!r})"}


def test_kernels_are_the_calls_of_the_lowered_graph() -> None:
    explanation = explained("toy_encoder_decoder")
    calls = Counter(node.target.__name__ for node in explanation.lowered.graph.nodes if is_ours(node))
    found: Counter[str] = Counter()
    for kernel in explanation.inspection.kernels:
        found[kernel.name] += kernel.calls
    assert found == calls
    assert {kernel.implementation for kernel in explanation.inspection.kernels} == {"torch"}


def test_kernels_on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_KERNELS", "triton")
    explanation = ac.explain(toys.deep_toy(6), (toys.random_tokens(),))
    reads = [kernel for kernel in explanation.inspection.kernels if kernel.name == "read"]
    assert sum(kernel.calls for kernel in reads) == sum(
        node.target in SCHEDULED_READS for node in explanation.scheduled.graph.nodes
    )
    assert {kernel.implementation for kernel in reads} == {"triton"}
    assert all("layer norm" in kernel.fused for kernel in reads)
    [phase_1] = [kernel for kernel in explanation.inspection.kernels if kernel.name == "phase_1"]
    assert phase_1.sources is not None
    assert 1 < phase_1.sources[0] <= phase_1.sources[1] < 7
    assert (phase_1.d, phase_1.dtype) == (32, "float32")


def test_added_parameters_are_those_that_prepare_registers() -> None:
    found = facts("mixed").parameters
    model = PreNorm()
    ac.prepare(model, (tokens(),))
    registered = {name: tuple(value.shape) for name, value in model.named_parameters() if name.startswith("attnres.")}
    assert sum(one.elements for one in found) == sum(shape[0] for shape in registered.values())
    assert sum(one.count for one in found) == len(registered)
    assert "attnres.streams.0.reads.2.query" in registered
    assert [(one.name, one.shape, one.init) for one in found] == [
        ("attnres.streams.0.reads.0-2.query", (16,), "zeros"),
        ("attnres.streams.0.reads.0-2.key_norm.weight", (16,), "ones"),
    ]


@pytest.mark.parametrize(
    ("name", "verdict", "headline"),
    [
        ("deep_6", Verdict.ALL, "all rewritten: 1 stream, 12 writes, 12 of 13 reads attend over depth"),
        ("mixed", Verdict.PARTLY, "3 of 4 reads attend over depth; left as it was: post_norm"),
        (
            "pieces",
            Verdict.PARTLY,
            "partly rewritten: stream blocks.2.mlp holds 2 writes, and 4 more additions of its chain",
        ),
        ("toy_post_norm", Verdict.NOTHING, "nothing rewritten: post_norm"),
        ("broken_inside", Verdict.NOTHING, "nothing rewritten: the graph break at models.py:"),
    ],
)
def test_the_verdict(name: str, verdict: Verdict, headline: str) -> None:
    found = facts(name)
    assert found.verdict is verdict
    assert headline in found.headline


def test_a_break_that_cuts_a_stream_is_named_with_its_line_and_what_to_do() -> None:
    explanation = explained("broken_inside")
    [found] = explanation.inspection.breaks
    assert "models.py:" in found.source
    assert found.cuts == "blocks"
    assert "take that line out of the forward" in found.fix
    assert not explanation.plan.streams
    assert explanation.after is explanation.before
    assert "it cuts the stream blocks" in str(explanation)


def test_a_break_before_a_stream_is_named_and_the_stream_is_rewritten() -> None:
    explanation = explained("broken_before")
    assert explanation.inspection.verdict is Verdict.ALL
    [found] = explanation.inspection.breaks
    assert not found.cuts
    assert len(explanation.graphs) == 2
    assert explanation.text("captured").count("# graph ") == 2
    assert "depth_attention" in explanation.text("rewritten")
    assert explanation.after is not explanation.before
