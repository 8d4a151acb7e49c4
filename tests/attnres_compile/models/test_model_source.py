"""MODEL on the command line: presets, options, and models without weights."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from attnres_compile.models import presets
from attnres_compile.models.errors import (
    ConfigSourceError,
    FactoryError,
    InputGuessError,
    LoadOptionError,
    MissingExtraError,
    ModelSourceError,
    SequenceTooLongError,
    UnknownPresetError,
)
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.presets import PRESETS
from attnres_compile.models.source import load_model
from attnres_kernels.errors import AttnResError

transformers = pytest.importorskip("transformers")

TINY = ["gpt2-tiny", "llama-tiny", "qwen3-tiny", "t5-tiny", "vit-tiny"]
# Of the published checkpoints, tied weights counted once; gpt2-2048 has 1,024 positions more than gpt2. The biases of
# routers, one per expert in each layer with experts, are buffers in transformers and not parameters.
PUBLISHED_PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-2048": 124_439_808 + 1_024 * 768,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma3-4b": 4_300_079_472,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_026_419_200 - 58 * 256,
    "kimi-linear-48b": 49_122_681_728 - 26 * 256,
    "t5-small": 60_506_624,
    "t5-3b": 2_851_598_336,
    "whisper-tiny": 37_760_640,
    "whisper-large": 1_543_304_960,
    "vit-b-16": 86_567_656,
    "vit-l-16": 304_326_632,
    "dinov2-l": 304_368_640,
}


def run(loaded):
    with torch.no_grad():
        return loaded.model(*loaded.args, **loaded.kwargs)


@pytest.mark.parametrize("name", TINY)
def test_preset_runs_on_its_example_inputs(name):
    loaded = load_model(name, LoadOptions(batch=2))
    logits = run(loaded).logits
    assert logits.shape[0] == 2
    assert torch.isfinite(logits).all()
    assert loaded.name == name
    assert not loaded.model.training


@pytest.mark.parametrize("name", TINY)
def test_preset_gives_labels_for_training(name):
    loaded = load_model(name)
    assert "labels" not in loaded.kwargs
    assert loaded.model(**loaded.training_kwargs).loss.ndim == 0


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_published_preset_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        preset = PRESETS[name]
        model = preset.build_model(preset.build_config())
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_PARAMETERS[name]


def test_every_preset_names_its_source_in_one_line():
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.source
        assert "\n" not in preset.source
    assert set(PRESETS) == {*TINY, *PUBLISHED_PARAMETERS, "kimi-k3-shape"}


def test_shape_dtype_and_seed_are_honoured():
    options = LoadOptions(batch=3, seq=17, dtype="bfloat16", seed=5)
    loaded = load_model("llama-tiny", options)
    assert loaded.kwargs["input_ids"].shape == (3, 17)
    assert loaded.kwargs["input_ids"].dtype is torch.int64
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    image = load_model("vit-tiny", LoadOptions(batch=2, dtype="float64"))
    assert image.kwargs["pixel_values"].dtype is torch.float64
    again = load_model("llama-tiny", options)
    assert torch.equal(again.kwargs["input_ids"], loaded.kwargs["input_ids"])
    pairs = zip(again.model.parameters(), loaded.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    other_seed = load_model("llama-tiny", LoadOptions(batch=3, seq=17, seed=6))
    assert not torch.equal(other_seed.kwargs["input_ids"], loaded.kwargs["input_ids"])


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model("gpt2-tiny")
    assert torch.equal(torch.rand(3), expected)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UnknownPresetError, match=r"'gpt2-meduim' is not a preset: did you mean gpt2-medium"):
        load_model("gpt2-meduim")


def test_unknown_preset_lists_the_ways_to_name_a_model():
    with pytest.raises(UnknownPresetError, match=r"Pass one of gpt2, .* config\.json, or module:factory\n"):
        load_model("zzzzzz")


def test_sequence_longer_than_the_model():
    with pytest.raises(SequenceTooLongError, match=r"max_position_embeddings=512\): pass --seq 512 or less"):
        load_model("gpt2-tiny", LoadOptions(seq=513))
    assert load_model("gpt2-tiny", LoadOptions(seq=512)).kwargs["input_ids"].shape == (1, 512)
    shorter = load_model("gpt2-tiny", LoadOptions(default_seq=4096))
    assert shorter.kwargs["input_ids"].shape == (1, 512), "a default is cut to what the model allows"


def test_length_of_a_model_that_takes_none():
    with pytest.raises(LoadOptionError, match=r"takes pixel_values.*leave --seq out"):
        load_model("vit-tiny", LoadOptions(seq=16))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 0}, "batch is 0: pass at least 1"),
        ({"seq": -1}, "seq is -1: pass at least 1"),
        ({"dtype": "int8"}, "dtype 'int8' is not supported: pass one of float32"),
    ],
)
def test_options_out_of_range(values, message):
    with pytest.raises(LoadOptionError, match=message):
        LoadOptions(**values)


@pytest.mark.parametrize(
    ("device", "message"),
    [("warp", "torch knows no device 'warp': pass"), ("meta", "cannot be run: pass --device cpu or cuda")],
)
def test_devices_that_cannot_be_used(device, message):
    with pytest.raises(LoadOptionError, match=message):
        load_model("gpt2-tiny", LoadOptions(device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_cuda_device():
    with pytest.raises(LoadOptionError, match=r"no CUDA device is available .*: pass --device cpu"):
        load_model("gpt2-tiny", LoadOptions(device="cuda"))


def test_presets_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'attnres-compile\[hf\]'") as caught:
        load_model("gpt2-tiny")
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_broken_package_under_transformers_is_named(monkeypatch):
    class Broken:
        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)
            if name == "GPT2Config":
                return transformers.GPT2Config
            root = RuntimeError("operator torchvision::nms does not exist")
            raise ModuleNotFoundError(f"Could not import module {name!r}.") from root

    monkeypatch.setitem(sys.modules, "transformers", Broken())
    with pytest.raises(
        MissingExtraError,
        match=r"import GPT2LMHeadModel \(RuntimeError: operator torchvision::nms .*\): repair or uninstall",
    ):
        load_model("gpt2-tiny")


def test_presets_can_be_listed_without_importing_transformers_or_torch():
    assert not {"transformers", "torch"} & set(vars(presets))


def test_all_errors_are_ours():
    for kind in (ConfigSourceError, FactoryError, InputGuessError, SequenceTooLongError, MissingExtraError):
        assert issubclass(kind, ModelSourceError)
        assert issubclass(kind, AttnResError)


def test_a_weightless_model_has_shapes_and_no_data():
    loaded = load_model("gpt2-xl", LoadOptions(weightless=True, dtype="bfloat16", default_seq=4096))
    assert {value.device.type for value in (*loaded.model.parameters(), *loaded.kwargs.values())} == {"meta"}
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.kwargs["input_ids"].shape == (1, 1024), "as many as it has positions"
    assert loaded.guessed
    assert loaded.asked_seq is None


def test_a_model_that_grows_with_its_tokens_is_given_few():
    loaded = load_model("kimi-linear-48b", LoadOptions(weightless=True, seq=4096))
    assert (loaded.kwargs["input_ids"].shape, loaded.asked_seq) == ((1, 64), 4096)
    assert loaded.rewrite == {"block_size": 6}
    whole = load_model("gpt2-tiny", LoadOptions(weightless=True, seq=64, capture_seq=64))
    assert (whole.kwargs["input_ids"].shape, whole.asked_seq) == ((1, 64), None)
    with pytest.raises(SequenceTooLongError):
        load_model("gpt2-tiny", LoadOptions(weightless=True, seq=4096, capture_seq=64))


def test_a_factory_may_build_without_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.py").write_text(
        "import torch\n\ndef build():\n    with torch.device('meta'):\n"
        "        return torch.nn.Linear(8, 8), {'input': torch.ones(2, 8)}\n"
    )
    loaded = load_model("bare.py:build", LoadOptions(dtype="bfloat16"))
    assert loaded.kwargs["input"].device.type == "meta"
    assert loaded.model.weight.dtype is torch.bfloat16


def test_a_weightless_copy_shares_what_the_model_shares_and_leaves_it_alone():
    from attnres_compile.capture.weightless import weightless_copy

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    copied = weightless_copy(model)
    assert copied[1].weight is copied[0].weight
    assert [value.requires_grad for value in copied.parameters()] == [
        value.requires_grad for value in model.parameters()
    ]
    assert {value.device.type for value in (*copied.parameters(), *copied.buffers())} == {"meta"}
    assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert copied[0].weight.shape == model[0].weight.shape
