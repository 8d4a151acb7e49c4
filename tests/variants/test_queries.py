"""A query each for q, k and v: every way to run such a model, against the form by hand, and what is said of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import attnres_compile as ac
from attnres_compile.model.errors import BorderError, ExportError, SavedStateError
from attnres_compile.pipelines.build import CutOptions, build_chunks, leaves_by_name
from attnres_compile.pipelines.chunk_module import ChunkModule
from attnres_compile.report.counting.checkpoints import count_setting
from attnres_compile.report.counting.model_counts import Lengths, model_graphs
from attnres_compile.report.parallel import Parallel, ParallelError
from attnres_passes.inline import norms_apart
from attnres_passes.ir.config import AttnResConfig, ConfigError
from attnres_passes.ranks.layout import StageLayout
from tests.variants.attending import WIDTH, Attending, attending, by_hand
from tests.variants.compiled import checkpointed, in_regions, per_layer
from tests.variants.toy import randomise, reads_of, states

QKV = {"queries": "qkv"}
INKLING = {**QKV, "key_norm": "plain", "logit_scale": WIDTH**-0.5, "value_norm": "plain"}


def prepared(form: dict[str, Any], block_size: int = 2, **options: Any) -> Attending:
    model = attending(**form)
    ac.prepare(model, (states(),), block_size=block_size, **options)
    randomise(model)
    return model


def whole(model: Attending) -> None:
    model.compile(backend="attnres", options={"inner": "aot_eager"})


@pytest.mark.parametrize("variant", [QKV, INKLING], ids=["qkv", "inkling2"])
@pytest.mark.parametrize("form", [{}, {"softmax": True}, {"parallel": True}], ids=str)
@pytest.mark.parametrize("way", [whole, per_layer, checkpointed, in_regions])
def test_outputs_and_gradients(way: Callable[[Attending], None], form: dict[str, Any], variant: dict[str, Any]) -> None:
    """Behind layers that are compiled by themselves, the last norm is run by Python."""
    torch.compiler.reset()
    model, x = prepared(form, **variant), states()
    plain = copy.deepcopy(model)
    expected = by_hand(plain, x, reads_of(plain), 2, **variant)
    expected.square().sum().backward()
    way(model)
    found = model(x)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_pipeline_chunks() -> None:
    model, x = prepared({}, **QKV), states()
    chunks = build_chunks(model, (x,), {}, CutOptions(StageLayout(2, 1)))
    modules = [ChunkModule(bodies) for bodies in chunks.bodies]
    known: dict[Any, Any] = {}
    output: Any = ()
    for module in modules:
        plan = module._content.plan
        known.update(zip(plan.arrives, output, strict=True))
        arrives = [known[key] for key in plan.arrives]
        given = module(*arrives, cached=tuple(known[key] for key in plan.cached), **leaves_by_name((x,), {}))
        output = given if isinstance(given, tuple) else (given,)
    torch.testing.assert_close(output[0], by_hand(model, x, reads_of(model), 2), rtol=1e-9, atol=1e-9)


@pytest.mark.interpreter
def test_on_generated_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_KERNELS", "triton")
    model, x = attending(layers=2).float(), states().float()
    ac.prepare(model, (x,), block_size=2, **QKV)
    randomise(model)
    wide = copy.deepcopy(model).double()
    expected = by_hand(wide, x.double(), reads_of(wide), 2)
    expected.square().sum().backward()
    model.compile(backend="attnres", options={"inner": "eager"})
    found = model(x)
    found.square().sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for (name, one), other in zip(model.named_parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_the_plan_says_of_every_read_which_query_it_has() -> None:
    plan = prepared({}, **QKV).attnres.plan
    first, second, *reads = plan.streams[0].reads
    assert (first.num_sources, first.argument, first.one_query) == (1, "", "")
    none = "no attention that is recognised takes what its norm leads to"
    assert second.one_query == none
    assert [read.argument for read in reads] == ["q", "k", "v", "", "q", "k", "v", "", ""]
    assert {read.one_query for read in reads if not read.argument} == {none}
    text = str(plan)
    assert "variant of the mechanism: queries='qkv'" in text
    assert text.count("of q\n") == text.count("of k\n") == text.count("of v\n") == 2
    assert f"one: {none}" in text
    assert ac.Plan.from_dict(plan.to_dict()) == plan
    explained = ac.explain(attending(), (states(),), block_size=2, **QKV)
    assert explained.plan.streams == plan.streams
    lines = [line.rstrip() for line in str(explained).splitlines() if "h.1-2.before" in line]
    assert [line.split()[-2:] for line in lines] == [["of", "q"], ["of", "k"], ["of", "v"]]
    sites = explained.inspection.to_dict()["streams"][0]["sites"]
    assert [site.get("query") for site in sites if site["module"] == "h.0.norm"] == [f"one: {none}"]


def test_one_query_is_what_it_was() -> None:
    plan = prepared({}).attnres.plan
    assert "query" not in str(plan)
    (stream,) = plan.to_dict()["streams"]
    assert not {"argument", "one_query"} & stream["reads"][0].keys()
    assert len(stream["reads"]) == 7


def test_weights_are_saved_and_those_of_one_query_refused(tmp_path: Path) -> None:
    model, one = prepared({}, **QKV), prepared({})
    with pytest.raises(SavedStateError, match="queries='qkv' was saved, this model has queries='one'"):
        one.load_state_dict(model.state_dict(), strict=False)
    ac.save(model, tmp_path)
    fresh = attending()
    assert ac.load(fresh, tmp_path) == model.attnres.plan
    again = prepared({}, **QKV)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(reads_of(again), reads_of(fresh))
    with pytest.raises(ExportError, match="prepared with queries='qkv'"):
        ac.export_weights(model, tmp_path, layout="fla")


def test_verify() -> None:
    found = ac.verify(attending(), (states(),), block_size=2, **QKV)
    assert found.passed, found
    assert "random queries, alike for q, k and v = one query" in [check.name for check in found.checks]


def test_verify_finds_a_norm_that_is_copied_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its weight."""
    run = norms_apart._Copier.run

    def unweighted(self: Any, told: Any) -> Any:
        apart = run(self, told)
        last = [node for node in apart.graph.nodes if node.name.startswith("mul") and node.name.endswith("_1")][-1]
        last.replace_all_uses_with(last.args[1])
        apart.recompile()
        return apart

    model = attending()
    torch.nn.init.normal_(model.h[2].before.weight)
    monkeypatch.setattr(norms_apart._Copier, "run", unweighted)
    found = ac.verify(model, (states(),), block_size=2, **QKV)
    assert not found.passed


def test_the_plain_side_of_a_report_is_that_of_one_query() -> None:
    model, x = attending().float(), states().float()
    one, three = (ac.overhead(model, (x,), block_size=2, queries=queries) for queries in ("one", "qkv"))
    rows = [{row.metric: row for row in report.rows} for report in (one, three)]
    assert rows[0].keys() == rows[1].keys()
    assert {name: row.plain for name, row in rows[0].items()} == {name: row.plain for name, row in rows[1].items()}
    added = [of["parameters"].attnres - of["parameters"].plain for of in rows]
    assert added == [6 * 2 * WIDTH, (6 + 4) * 2 * WIDTH]


@pytest.mark.parametrize("checkpoint", ["none", "layer", "branch"])
def test_the_plain_side_under_checkpoints_is_that_of_one_query(checkpoint: str) -> None:
    found = []
    for queries in ("one", "qkv"):
        graphs = model_graphs(
            attending().float(), (states().float(),), {}, AttnResConfig(block_size=2, queries=queries)
        )
        counts = graphs.count(Lengths())
        found.append(count_setting(graphs, counts, Parallel(checkpoint)))
        if queries == "qkv":
            with pytest.raises(ParallelError, match="leave queries out, or ask for tp=1"):
                count_setting(graphs, counts, Parallel(checkpoint, tp=2))
    assert found[0].plain == found[1].plain
    assert found[0].regions == found[1].regions
    assert found[1].attnres.saved_bytes > found[0].attnres.saved_bytes


def test_depth_weights_are_told_apart() -> None:
    model = prepared({}, inner="eager", **QKV)
    model.compile(backend="attnres")
    with ac.depth_weights(model) as recorded:
        model(states())
    names = [read.module for read in recorded.reads]
    assert names[1:4] == ["h.1.before (q)", "h.1.before (k)", "h.1.before (v)"]


def test_no_plan_of_an_uncompiled_run() -> None:
    class Broken(Attending):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.h:
                x = layer(x)
                torch._dynamo.graph_break()
            return self.norm(x)

    with pytest.raises(ConfigError, match="queries='qkv' puts the norms of one graph apart, and Broken is planned"):
        ac.prepare(Broken().double(), (states(),), **QKV)


def test_a_norm_that_python_runs_is_for_one_read() -> None:
    """The first layer is compiled, and the norm of the second is run by Python."""
    torch.compiler.reset()
    model = prepared({}, **QKV)
    model.h[0].compile(backend="attnres", options={"inner": "eager"})
    with pytest.raises(BorderError, match=r"h\.1\.before reads the state after 2 writes 3 times"):
        model(states())
