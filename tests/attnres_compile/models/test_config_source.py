"""MODEL as a configuration of transformers: a directory or a ``config.json``."""

from __future__ import annotations

import json

import pytest
import torch

from attnres_compile.models.errors import (
    ConfigSourceError,
    InputGuessError,
    UnknownPresetError,
)
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model

transformers = pytest.importorskip("transformers")


def run(loaded):
    with torch.no_grad():
        return loaded.model(*loaded.args, **loaded.kwargs)


def write_config(directory, values):
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def gpt2_values(**more):
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=32)
    return config.to_dict() | {"bos_token_id": None, "eos_token_id": None} | more


@pytest.mark.parametrize("as_file", [False, True])
def test_configuration_of_a_named_architecture(tmp_path, as_file):
    directory = write_config(tmp_path, gpt2_values(architectures=["GPT2LMHeadModel"]))
    path = directory / "config.json" if as_file else directory
    loaded = load_model(str(path), LoadOptions(seq=8))
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert run(loaded).logits.shape == (1, 8, 64)


def test_configuration_without_architecture_gets_the_likeliest_class(tmp_path):
    loaded = load_model(str(write_config(tmp_path, gpt2_values())))
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    t5 = transformers.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64)
    loaded = load_model(str(write_config(tmp_path, t5.to_dict())))
    assert type(loaded.model).__name__ == "T5ForConditionalGeneration"
    assert set(loaded.kwargs) == {"input_ids", "decoder_input_ids"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "cannot be read as a configuration .*: pass a transformers config.json"),
        ("[1, 2]", "has no model_type: pass a transformers config.json"),
        ("{}", "has no model_type"),
        ('{"model_type": "gpt3"}', r"model_type 'gpt3'.*\(near: .*gpt2.*\): correct it"),
    ],
)
def test_configuration_that_is_none(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigSourceError, match=message):
        load_model(str(tmp_path))


def test_a_python_file_without_a_name_in_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def model(): ...")
    with pytest.raises(ConfigSourceError, match=r"mine.py is Python.*: name what builds the model, .*mine.py:FUNCTION"):
        load_model(str(file))


def test_configuration_that_is_missing(tmp_path):
    with pytest.raises(ConfigSourceError, match=r"holds no config.json: pass a directory that does"):
        load_model(str(tmp_path))
    with pytest.raises(UnknownPresetError, match=r"there is no configuration at .*: pass a directory"):
        load_model(str(tmp_path / "elsewhere" / "config.json"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "layoutxlm"}, r'has no model class in transformers: set "architectures"'),
        (
            {"model_type": "gpt2", "architectures": ["NoSuchModel"]},
            r"names the architecture NoSuchModel, which the installed transformers does not have: correct it",
        ),
        (
            {"model_type": "gpt2", "n_embd": 30, "n_head": 4, "n_layer": 1},
            r"transformers cannot build .* \(\w+: .*\): correct the config.json",
        ),
    ],
)
def test_configuration_without_a_model_class(tmp_path, values, message):
    with pytest.raises(ConfigSourceError, match=message):
        load_model(str(write_config(tmp_path, values)))


def test_inputs_that_cannot_be_guessed_are_found_by_running_them(tmp_path):
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
        },
    )
    write_config(tmp_path, config.to_dict() | {"architectures": ["CLIPModel"]})
    with pytest.raises(InputGuessError, match=r"CLIPModel does not run .* write a function that returns"):
        load_model(str(tmp_path))


def test_main_input_of_an_unknown_kind(tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    write_config(tmp_path, config.to_dict() | {"architectures": ["Wav2Vec2Model"]})
    with pytest.raises(InputGuessError, match=r"its main input is 'input_values'.* name it as module:factory\n"):
        load_model(str(tmp_path))
