"""Models by any mechanism: compiled and trained, saved and loaded, verified, explained, reported and recorded."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import attnres_compile as ac
from attnres_compile.api import verify as verify_module
from attnres_compile.api.checks import normed_values
from attnres_compile.api.verify_eager import PARTS
from attnres_compile.model.errors import ExportError, SavedStateError
from attnres_kernels.definition import variants
from attnres_kernels.definition.mechanism import Mechanism
from attnres_passes.rewrite import rewrite_stream
from tests.variants.toy import VARIANTS, WIDTH, Toy, by_hand, randomise, reads_of, states, toy

ALL = VARIANTS[-1]


def prepared(variant: dict[str, Any], layers: int = 5, **options: Any) -> Toy:
    model = toy(layers)
    ac.prepare(model, (states(),), block_size=2, **variant, **options)
    return model


@pytest.mark.parametrize("variant", [VARIANTS[0], ALL], ids=str)
def test_a_compiled_model_and_its_gradients(variant: dict[str, Any]) -> None:
    model, x = prepared(variant, inner="aot_eager"), states()
    randomise(model)
    plain = copy.deepcopy(model)
    expected = by_hand(plain, x, reads_of(plain), 2, **variant)
    expected.square().sum().backward()
    model.compile(backend="attnres")
    found = model(x)
    found.square().sum().backward()
    assert ac.status(model).state == "rewritten"
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_under_inductor_by_the_definition_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    model, x = prepared(ALL, layers=2), states()
    randomise(model)
    expected = by_hand(model, x, reads_of(model), 2, **ALL)
    model.compile(backend="attnres")
    with caplog.at_level(logging.INFO, "attnres_compile"):
        found = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert "reads on torch (the definition in torch, key_norm='none': phase 1 and the kernels divide" in caplog.text


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_parameters_and_what_the_plan_says(variant: dict[str, Any]) -> None:
    model = prepared(variant)
    reads, plan = model.attnres.streams[0].reads, model.attnres.plan
    names = {"query_projection.weight" if variant.get("query") == "input" else "query"}
    names |= {"key_norm.weight"} if variant.get("key_norm", "weight") == "weight" else set()
    assert {name for name, _ in reads[0].named_parameters()} == names
    added = sum(parameter.numel() for parameter in model.attnres.parameters())
    assert f"{added:,} parameters added; variant of the mechanism: " in str(plan)
    assert all(f"{name}={value!r}" in str(plan) for name, value in variant.items())
    assert ac.Plan.from_dict(plan.to_dict()) == plan
    groups = ac.param_groups(model, lr=1.0, weight_decay=0.1)
    assert sum(parameter.numel() for parameter in groups[-1]["params"]) == added
    assert groups[-1]["weight_decay"] == 0.0


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_weights_of_another_mechanism_are_refused(variant: dict[str, Any], tmp_path: Path) -> None:
    model, paper = prepared(variant), prepared({})
    randomise(model)
    named = [f"{name}={value!r} was saved" for name, value in variant.items()]
    with pytest.raises(SavedStateError) as caught:
        paper.load_state_dict(model.state_dict(), strict=False)
    assert all(one in str(caught.value) for one in named)
    with pytest.raises(SavedStateError, match=f"this model has {next(iter(variant))}="):
        model.load_state_dict(paper.state_dict(), strict=False)
    ac.save(model, tmp_path)
    with pytest.raises(SavedStateError, match="with another mechanism than") as caught:
        ac.load(paper, tmp_path)
    assert all(one in str(caught.value) for one in named)
    fresh = toy()
    assert ac.load(fresh, tmp_path) == model.attnres.plan
    for one, other in zip(reads_of(fresh), reads_of(model), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    again = prepared(variant)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("variant", [{"window": 1}, {"value_norm": "plain"}, ALL, VARIANTS[0]], ids=str)
def test_verify_says_which_identity_holds(variant: dict[str, Any]) -> None:
    found = ac.verify(toy(), (states(),), block_size=1, **variant)
    assert found.passed, found
    names = [check.name for check in found.checks]
    of_all = ", window of all blocks" if "window" in variant else ""
    of_all += ", values as they are" if "value_norm" in variant else ""
    assert f"zero queries, scale=sum{of_all} = original" in names
    assert f"compiled rewrite = plain module in eager, gradients too{of_all}" in names
    assert ("window" in variant) == any(name.startswith("random queries, window=1 = all blocks") for name in names)
    assert ("value_norm" in variant) == (normed_values.NAME in names)
    assert bool(found.deviations) == ("value_norm" not in variant)


def test_verify_finds_a_window_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block before the one that is meant."""
    attended = rewrite_stream.blocks.attended

    def shifted(sources: Any, state: int, block_size: int, window: int | None) -> Any:
        kept = attended(sources, state, block_size, window)
        return kept if window is None or len(sources) < 3 else [sources[0], sources[-2]]

    monkeypatch.setattr(rewrite_stream.blocks, "attended", shifted)
    found = ac.verify(toy(), (states(),), block_size=1, window=1)
    failed = [check for check in found.checks if not check.passed]
    assert [check.name.partition(" = ")[0] for check in failed] == ["random queries, window=1"]
    assert verify_module.ZERO_QUERIES in found.checks[0].name


def test_verify_finds_values_that_are_normed_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their length, and not by their root mean square."""

    def by_length(source: torch.Tensor, eps: float, how: Mechanism) -> torch.Tensor:
        return source if how.value_norm == "none" else torch.nn.functional.normalize(source, dim=-1, eps=eps)

    monkeypatch.setattr(variants, "mixed_value", by_length)
    found = ac.verify(toy(), (states(),), block_size=1, value_norm="plain")
    assert [check.name for check in found.checks if not check.passed] == [normed_values.NAME]


def test_verify_says_what_it_cannot_compare_of_several_graphs() -> None:
    class Broken(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.h:
                x = layer(x)
                torch._dynamo.graph_break()
            return self.norm(x)

    torch.manual_seed(0)
    found = ac.verify(Broken().double(), (states(),), block_size=1, value_norm="plain")
    assert [check.name for check in found.checks] == [f"{PARTS}, values as they are", normed_values.NAME]
    assert found.passed, found
    assert "the model is of several graphs" in found.checks[1].skipped


def test_explain_says_why_no_schedule_is_used() -> None:
    explanation = ac.explain(toy(), (states(),), block_size=2, mixing="sigmoid")
    assert "bound to torch: the definition in torch, mixing='sigmoid': phase 1" in explanation.schedule
    assert "variant of the mechanism: mixing='sigmoid'" in str(explanation.plan)
    assert explanation.to_dict()["config"]["mixing"] == "sigmoid"
    assert "variant_attention" in explanation.text("rewritten")
    assert "variant_read" in explanation.text("lowered")
    assert "mixing" not in ac.explain(toy(), (states(),)).to_dict()["config"]


def test_the_report_counts_the_variant() -> None:
    model = toy().float()
    x = states().float()
    rows = {
        name: {row.metric: row for row in ac.overhead(model, (x,), block_size=2, **variant).rows}
        for name, variant in {
            "paper": {},
            "sigmoid": {"mixing": "sigmoid"},
            "none": {"key_norm": "none"},
            "input": {"query": "input"},
            "normed": {"value_norm": "plain"},
            "normed values alone": {"value_norm": "plain", "key_norm": "none"},
        }.items()
    }
    added = {name: of["parameters"].attnres - of["parameters"].plain for name, of in rows.items()}
    assert added["paper"] == added["sigmoid"] == added["normed"] == 2 * added["none"]
    flops = {name: of["forward FLOPs"].attnres - of["forward FLOPs"].plain for name, of in rows.items()}
    # 1, 2, 2, 3, 3, 4 sources: square sum, dot product and weighted sum of each, of reads with two or more.
    tokens, sources = 6, 2 + 2 + 3 + 3 + 4
    assert flops["sigmoid"] == 2 * 3 * sources * tokens * WIDTH
    assert flops["none"] == 2 * 2 * sources * tokens * WIDTH
    assert flops["normed"] == flops["normed values alone"] == flops["sigmoid"]
    assert flops["input"] == flops["sigmoid"] + 2 * 5 * tokens * WIDTH**2
    assert added["input"] == 5 * (WIDTH**2 + WIDTH)


def test_depth_weights_are_those_of_the_variant() -> None:
    model, x = prepared({"mixing": "sigmoid", "heads": 2}, inner="eager"), states()
    randomise(model)
    model.compile(backend="attnres")
    with ac.depth_weights(model) as recorded:
        model(x)
    first = recorded.reads[0]
    root = x
    written = model.h[0](x) - x
    parameters = reads_of(model)[0]
    values = torch.stack([root, written])
    keys = values / (values.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * parameters["key_norm.weight"]
    logits = (keys * parameters["query"]).unflatten(-1, (2, -1)).sum(-1)
    weights = logits.sigmoid() * 2 / 2
    assert first.weights == pytest.approx(weights.mean((1, 2, 3)).tolist(), abs=1e-9)
    shares = weights / weights.sum(0)
    assert first.entropy == pytest.approx(float(-(shares * shares.log()).sum(0).mean().detach()), abs=1e-9)


def test_parameters_of_a_variant_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="prepared with mixing='sigmoid'"):
        ac.export_weights(prepared({"mixing": "sigmoid"}), tmp_path, layout="fla")
