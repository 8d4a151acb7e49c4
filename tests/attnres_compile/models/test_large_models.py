"""Models whose weights need more memory than there is: inspected without weights, refused by what runs them."""

from __future__ import annotations

import pytest
import torch

from attnres_compile.cli import main as cli
from attnres_compile.models import memory
from attnres_compile.models.errors import TooLargeError
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model

pytest.importorskip("transformers")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than the weights of the smallest preset."""
    monkeypatch.setattr(memory, "_main_memory", lambda: 1000)


def weight_bytes(name: str, dtype: str = "float32") -> int:
    model = load_model(name, LoadOptions(dtype=dtype)).model
    return sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])


def test_weights_that_just_fit_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = weight_bytes("gpt2-tiny")
    monkeypatch.setattr(memory, "_main_memory", lambda: needed)
    load_model("gpt2-tiny", LoadOptions())
    monkeypatch.setattr(memory, "_main_memory", lambda: needed - 1)
    with pytest.raises(TooLargeError, match="take a smaller model"):
        load_model("gpt2-tiny", LoadOptions())


def test_weights_on_a_device_count_in_the_dtype_that_they_have_there(monkeypatch: pytest.MonkeyPatch) -> None:
    count = weight_bytes("gpt2-tiny") // 4
    monkeypatch.setattr(memory, "_memory_of", lambda device: 2 * count)
    load_model("gpt2-tiny", LoadOptions(dtype="bfloat16"))
    with pytest.raises(TooLargeError, match="cpu has"):
        load_model("gpt2-tiny", LoadOptions(dtype="float32"))


def test_a_model_that_cannot_be_built_without_data_is_built(little_memory: None) -> None:
    def build() -> torch.nn.Module:
        model = torch.nn.Linear(4, 4)
        float(model.weight.sum())
        return model

    memory.check_fits(build, torch.device("cpu"), torch.float32)


def test_inspect_goes_on_without_weights(little_memory: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "llama-tiny"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("attnres: inspected without weights, on the meta device: the weights need ")
    assert "all rewritten: 1 stream" in shown.out


def test_what_runs_the_model_says_what_it_needs(little_memory: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "llama-tiny"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("attnres: error: the weights need ")


def test_counting_needs_no_weights(little_memory: None) -> None:
    assert cli.main(["report", "llama-tiny", "--seq", "8"]) == 0
