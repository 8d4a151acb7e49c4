"""``save_pretrained`` and ``from_pretrained``: a prepared model comes back whole, or an error says why not."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import attnres_compile as ac
from attnres_compile.model.errors import SavedStateError, WeightsLeftOutError
from tests.attnres_compile.integrations.llama import logits, plain, prepared, token_ids

transformers = pytest.importorskip("transformers")
LLAMA = transformers.LlamaForCausalLM


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    model = prepared()
    model.save_pretrained(tmp_path / "saved")
    return model, tmp_path / "saved"


def assert_same(found: Any, model: Any) -> None:
    assert ac.status(found).state == "prepared"
    assert found.attnres.plan.fingerprint == model.attnres.plan.fingerprint
    state, expected = found.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("cls", [transformers.AutoModelForCausalLM, LLAMA], ids=["auto", "its class"])
def test_planned_again(saved: tuple[Any, Path], cls: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, folder = saved
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        found = ac.from_pretrained(folder, cls)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "LOAD REPORT" not in caplog.text
    assert_same(found, model)
    if cls is LLAMA:
        assert torch.equal(logits(found), logits(model))


def test_with_the_saved_plan(saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is captured: a large model is ready when its weights are."""
    model, folder = saved
    ac.save(model, folder)
    monkeypatch.setattr("attnres_compile.integrations.pretrained.plan_model", None)
    found = ac.from_pretrained(folder, LLAMA)
    assert_same(found, model)
    assert torch.equal(logits(found), logits(model))


def test_values_are_those_of_the_model(saved: tuple[Any, Path]) -> None:
    """``save_pretrained`` again, and the plan beside it is still the plan."""
    model, folder = saved
    ac.save(model, folder)
    with torch.no_grad():
        model.attnres.streams[0].reads[0].query.add_(1.0)
    model.save_pretrained(folder)
    assert_same(ac.from_pretrained(folder, LLAMA), model)


def test_plain_weights_beside_ours(tmp_path: Path) -> None:
    model = prepared()
    ac.save(model, tmp_path)
    others = {name: value for name, value in model.state_dict().items() if not name.startswith("attnres.")}
    model.save_pretrained(tmp_path, state_dict=others)
    assert_same(ac.from_pretrained(tmp_path, LLAMA), model)


def test_shards(tmp_path: Path) -> None:
    model = prepared()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(ac.from_pretrained(tmp_path, LLAMA), model)


@pytest.mark.parametrize("options", [{"num_blocks": 2, "scale": "sum"}, {"block_size": 1, "eps": 1e-4}])
def test_options(options: dict[str, Any], tmp_path: Path) -> None:
    model = prepared(**options)
    model.save_pretrained(tmp_path)
    found = ac.from_pretrained(tmp_path, LLAMA)
    assert found.attnres.streams[0].reads[0].key_norm.eps == options.get("eps", 1e-6)
    assert_same(found, model)


def test_streams_of_two_sizes(tmp_path: Path) -> None:
    """No block size serves both, and a number of blocks does."""
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "vocab_size": 64, "dropout_rate": 0.0}
    config = transformers.T5Config(num_layers=2, num_decoder_layers=2, decoder_start_token_id=0, **sizes)
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids()}
    plan = ac.prepare(model, kwargs=inputs, num_blocks=2)
    assert [stream.block_size for stream in plan.streams] == [2, 3]
    model.save_pretrained(tmp_path)
    found = ac.from_pretrained(tmp_path, transformers.T5ForConditionalGeneration)
    assert found.attnres.plan.fingerprint == plan.fingerprint


def test_dtype(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    found = ac.from_pretrained(folder, LLAMA, dtype=torch.bfloat16)
    assert {value.dtype for value in found.parameters()} == {torch.bfloat16}


def test_the_body_alone(saved: tuple[Any, Path]) -> None:
    """Another class with the same stream: planned for what it is."""
    model, folder = saved
    found = ac.from_pretrained(folder, transformers.LlamaModel)
    found.compile(backend="attnres", options={"inner": "eager"})
    with torch.no_grad():
        hidden = found(input_ids=token_ids()).last_hidden_state
    assert torch.equal(model.lm_head(hidden), logits(model))


def test_other_unexpected_weights_are_reported(saved: tuple[Any, Path], caplog: pytest.LogCaptureFixture) -> None:
    _, folder = saved
    tensors = load_file(folder / "model.safetensors") | {"model.surplus": torch.ones(1)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        ac.from_pretrained(folder, LLAMA)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "model.surplus" in caplog.text


def no_directory(folder: Path) -> None:
    shutil.rmtree(folder)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 8])


def saved_plain(folder: Path) -> None:
    plain().save_pretrained(folder)


def without(name: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def no_plan_tensor(folder: Path) -> None:
    without("attnres.plan_tensor", folder)


def a_query_less(folder: Path) -> None:
    without("attnres.streams.0.reads.1.query", folder)


def another_saved_plan(folder: Path) -> None:
    ac.save(prepared(num_blocks=4), folder)


def another_depth(folder: Path) -> None:
    plain(layers=3).config.save_pretrained(folder)


MISTAKES = {
    no_directory: "is no directory; give one",
    no_weights: r"holds no model\.safetensors",
    truncated: "cannot be read",
    saved_plain: "saved from a plain model",
    no_plan_tensor: r"no attnres\.plan_tensor",
    a_query_less: r"reads\.1\.query missing",
    another_saved_plan: r"another plan than beside: stream 0: block_size 2 .* save both again",
    another_depth: "another plan than was found for the model: stream 0: writes 4 .*, this model has 6",
}


@pytest.mark.parametrize("spoil", MISTAKES, ids=lambda spoil: spoil.__name__)
def test_refused(saved: tuple[Any, Path], spoil: Any) -> None:
    _, folder = saved
    spoil(folder)
    with pytest.raises(SavedStateError, match=MISTAKES[spoil]):
        ac.from_pretrained(folder, LLAMA)


def test_inputs_that_do_not_fit(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    with pytest.raises(SavedStateError, match=r"(?s)cannot be planned with the inputs: .* Give inputs="):
        ac.from_pretrained(folder, LLAMA, inputs={"pixel_values": torch.ones(1)})


class TestPlainLoading:
    """transformers leaves our tensors out with a report, and what then prepares the model finds it."""

    def test_prepare(self, saved: tuple[Any, Path]) -> None:
        model = LLAMA.from_pretrained(saved[1])
        with pytest.raises(WeightsLeftOutError, match=r"9 AttnRes tensors.*without them\. Load it with"):
            ac.prepare(model, kwargs={"input_ids": token_ids()}, num_blocks=2)
        assert ac.status(model).state == "untouched"

    def test_first_call(self, saved: tuple[Any, Path]) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(saved[1], dtype=torch.bfloat16)
        model.compile(backend="attnres", options={"inner": "eager"})
        with pytest.raises(WeightsLeftOutError):
            model(input_ids=token_ids())
        assert not hasattr(model, "attnres")

    def test_the_body_alone(self, saved: tuple[Any, Path]) -> None:
        with pytest.raises(WeightsLeftOutError):
            ac.prepare(transformers.LlamaModel.from_pretrained(saved[1]), kwargs={"input_ids": token_ids()})

    def test_anew_on_purpose(self, saved: tuple[Any, Path]) -> None:
        model = LLAMA.from_pretrained(saved[1])
        model.name_or_path = ""
        ac.prepare(model, kwargs={"input_ids": token_ids()}, num_blocks=2)

    def test_load_mends_it(self, saved: tuple[Any, Path]) -> None:
        model, folder = saved
        ac.save(model, folder)
        found = LLAMA.from_pretrained(folder)
        ac.load(found, folder)
        assert_same(found, model)

    def test_of_its_config_alone_it_is_new(self, saved: tuple[Any, Path]) -> None:
        config = transformers.AutoConfig.from_pretrained(saved[1])
        model = transformers.AutoModelForCausalLM.from_config(config)
        assert model.name_or_path == str(saved[1])
        ac.prepare(model, kwargs={"input_ids": token_ids()}, num_blocks=2)
        model.load_state_dict(saved[0].state_dict())

    def test_of_a_plain_model(self, tmp_path: Path) -> None:
        plain().save_pretrained(tmp_path)
        ac.prepare(LLAMA.from_pretrained(tmp_path), kwargs={"input_ids": token_ids()}, num_blocks=2)
