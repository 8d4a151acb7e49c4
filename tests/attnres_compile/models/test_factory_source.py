"""MODEL as a factory of the user's own: of a module, or of a file."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from torch import nn

from attnres_compile.models.errors import (
    FactoryError,
    LoadOptionError,
)
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model

pytest.importorskip("transformers")


def run(loaded):
    with torch.no_grad():
        return loaded.model(*loaded.args, **loaded.kwargs)


FACTORIES = """
import torch
from torch import nn

def with_kwargs():
    return nn.Linear(4, 4), {"input": torch.ones(2, 4)}

def with_args():
    return nn.Linear(4, 4), (torch.ones(2, 4),), {}

def with_list():
    return nn.Linear(4, 4), [torch.ones(2, 4)], {}

def sized(batch, seq, dtype, device):
    return nn.Linear(4, 4), (torch.ones(batch, seq, 4),), {}

def anything(**options):
    return nn.Linear(4, 4), (torch.ones(options["batch"], 4),), {}

def nested():
    return nn.Linear(4, 4), {"input": torch.ones(1, 4), "more": [{"scale": torch.ones(1)}, None, "text"]}

def module_alone():
    return nn.Linear(4, 4)

def transformer_alone():
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64))

def number():
    return 3

def swapped():
    return {"input": torch.ones(1)}, nn.Linear(4, 4)

def raises():
    raise KeyError("the layer list is empty")

def raises_in_torch():
    return nn.Linear(4, -4)

a_value = 7
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """The name of an importable module of the working directory with all the functions of FACTORIES."""
    (tmp_path / "my_factories.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    yield "my_factories"
    sys.modules.pop("my_factories", None)


@pytest.mark.parametrize("function", ["with_kwargs", "with_args", "with_list"])
@pytest.mark.parametrize("prefix", ["my_factories", "my_factories.py"])
def test_factory_of_a_module_or_a_file(factories, prefix, function):
    loaded = load_model(f"{prefix}:{function}", LoadOptions(dtype="float64"))
    assert isinstance(loaded.model, nn.Linear)
    assert run(loaded).dtype is torch.float64
    assert loaded.name == f"{prefix}:{function}"


def test_the_working_directory_stays_off_the_path(factories, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = list(sys.path)
    load_model("my_factories:with_args")
    assert sys.path == before


def test_factory_gets_the_options_it_has_parameters_for(factories):
    loaded = load_model("my_factories:sized", LoadOptions(batch=3, seq=5))
    assert loaded.args[0].shape == (3, 5, 4)
    assert load_model("my_factories:anything", LoadOptions(batch=2)).args[0].shape == (2, 4)


def test_tensors_deep_inside_the_inputs_are_cast(factories):
    more = load_model("my_factories:nested", LoadOptions(dtype="bfloat16")).kwargs["more"]
    assert more[0]["scale"].dtype is torch.bfloat16
    assert more[1:] == [None, "text"]


def test_factory_without_a_parameter_for_what_was_asked(factories):
    with pytest.raises(LoadOptionError, match="no parameter 'seq': add one to the factory, or leave --seq out"):
        load_model("my_factories:with_args", LoadOptions(seq=7))
    with pytest.raises(LoadOptionError, match="no parameter 'batch'"):
        load_model("my_factories:with_args", LoadOptions(batch=7))


def test_inputs_of_a_transformers_model_alone_are_guessed(factories):
    loaded = load_model("my_factories:transformer_alone", LoadOptions(seq=6))
    assert run(loaded).logits.shape == (1, 6, 64)
    assert "labels" in loaded.training_kwargs


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("module_alone", r"returned a Linear without inputs.* returns \(model, kwargs\)"),
        ("number", r"returned a int: return a module, \(module, kwargs\)"),
        ("swapped", r"returned \(dict, Linear\): return a module"),
        ("raises", r"raised KeyError: 'the layer list is empty' \(at .*my_factories.py:\d+\): correct"),
        ("raises_in_torch", r"raised RuntimeError: .* \(at .*my_factories.py:\d+\): correct the factory"),
        ("a_value", "a_value is a int: name a function"),
        ("with_kwarg", r"my_factories has no 'with_kwarg': did you mean with_kwargs"),
        ("zzzz", "has no 'zzzz': name one of its functions"),
    ],
)
def test_factory_that_gives_no_model(factories, function, message):
    with pytest.raises(FactoryError, match=message):
        load_model(f"my_factories:{function}")


def test_factory_that_raises_keeps_its_cause_and_its_own_line(factories, tmp_path):
    with pytest.raises(FactoryError) as caught:
        load_model("my_factories:raises_in_torch")
    assert isinstance(caught.value.__cause__, RuntimeError)
    lines = (tmp_path / "my_factories.py").read_text().splitlines()
    wanted = lines.index("    return nn.Linear(4, -4)") + 1
    assert f"my_factories.py:{wanted})" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "no_such_module:build",
            "there is no module 'no_such_module'.*correct it, or run from the directory",
        ),
        ("no_such_file.py:build", "there is no module 'no_such_file.py'"),
    ],
)
def test_factory_of_a_missing_module(factories, text, message):
    with pytest.raises(FactoryError, match=message):
        load_model(text)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import a_package_that_is_missing\n",
            r"raised ModuleNotFoundError: .*broken.py:1\): correct the module",
        ),
        ("x = 1\nx.y\n", r"raised AttributeError: .*broken.py:2\): correct the module"),
        ("def build(:\n", r"raised SyntaxError: .*broken.py:1\): correct the module"),
    ],
)
@pytest.mark.parametrize("text", ["broken:build", "broken.py:build"])
def test_factory_of_a_module_that_does_not_import(tmp_path, monkeypatch, source, message, text):
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FactoryError, match=message) as caught:
        load_model(text)
    assert caught.value.__cause__ is not None
    assert "broken" not in sys.modules
