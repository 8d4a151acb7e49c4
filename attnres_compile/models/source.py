"""From the MODEL of a command line to a module with example inputs.

MODEL is a preset (``gpt2``), a transformers configuration (a directory or a ``config.json``), or a factory
(``package.module:function`` or ``path/to/file.py:function``).
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnres_compile.models.config_source import load_config, model_from_config
from attnres_compile.models.errors import FactoryError, UnknownPresetError
from attnres_compile.models.example_inputs import HOW_TO_GIVE_INPUTS, check_guess, guess_inputs, guess_labels
from attnres_compile.models.factory_source import call_factory
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.presets import PRESETS


@dataclass(frozen=True)
class LoadedModel:
    """A module, in eval mode, and inputs it can be called with: ``model(*args, **kwargs)``.

    training_kwargs: ``kwargs`` and, where the model computes its own loss, ``labels``.
    source: where the shape of the model comes from, in one line.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    training_kwargs: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def load_model(text: str, options: LoadOptions | None = None) -> LoadedModel:
    """Resolve MODEL and build its example inputs as ``options`` say.

    The random weights and inputs follow ``options.seed``. Raises the subclasses of ModelSourceError.
    """
    options = options or LoadOptions()
    device = options.torch_device()
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        loaded = _resolve(text, options)
    move = _Mover(device, options.torch_dtype())
    return LoadedModel(
        name=loaded.name,
        model=loaded.model.to(device=move.device, dtype=move.dtype).eval(),
        args=move(loaded.args),
        kwargs=move(loaded.kwargs),
        training_kwargs=move(loaded.training_kwargs or loaded.kwargs),
        source=loaded.source,
    )


def _resolve(text: str, options: LoadOptions) -> LoadedModel:
    preset = PRESETS.get(text)
    if preset is not None:
        model = preset.build_model(_without_cache(preset.build_config()))
        return _with_guessed_inputs(text, model, options, preset.source)
    path = Path(text)
    if path.exists():
        config = _without_cache(load_config(path))
        name = config.name_or_path or path.resolve().stem
        loaded = _with_guessed_inputs(name, model_from_config(config, text), options, text)
        check_guess(loaded.model, loaded.kwargs)
        return loaded
    if ":" in text:
        return _from_factory(text, options)
    raise UnknownPresetError(_unknown(text))


def _without_cache(config: Any) -> Any:
    """``config`` with generation's cache off: one forward over a whole sequence fills none in training."""
    if getattr(config, "use_cache", False):
        config.use_cache = False
    return config


def _with_guessed_inputs(name: str, model: Any, options: LoadOptions, source: str) -> LoadedModel:
    inputs = guess_inputs(model, options)
    return LoadedModel(name, model, (), inputs, inputs | guess_labels(model, inputs), source)


def _from_factory(text: str, options: LoadOptions) -> LoadedModel:
    result = call_factory(text, options)
    match result.value:
        case nn.Module() as model if hasattr(model, "main_input_name"):
            loaded = _with_guessed_inputs(text, model, options, text)
            check_guess(loaded.model, loaded.kwargs)
            return loaded
        case nn.Module() as model:
            raise FactoryError(
                f"{text} returned a {type(model).__name__} without inputs, and only those of transformers "
                f"models can be guessed; {HOW_TO_GIVE_INPUTS}"
            )
        case (nn.Module() as model, dict() as kwargs):
            loaded = LoadedModel(text, model, (), kwargs, source=text)
        case (nn.Module() as model, (tuple() | list()) as args, dict() as kwargs):
            loaded = LoadedModel(text, model, tuple(args), kwargs, source=text)
        case other:
            raise FactoryError(
                f"{text} returned {_shape_of(other)}: return a module, (module, kwargs) or (module, args, kwargs)"
            )
    result.require_honoured(text, options)
    return loaded


def _shape_of(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(type(item).__name__ for item in value) + ")"
    return f"a {type(value).__name__}"


def _unknown(text: str) -> str:
    if os.sep in text or text.endswith(".json"):
        return f"there is no configuration at {text}: pass a directory with a config.json, or the file itself"
    near = difflib.get_close_matches(text, PRESETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"{text!r} is not a preset: {hint}Pass one of {', '.join(PRESETS)}, a configuration directory or "
        "config.json, or module:factory"
    )


@dataclass(frozen=True)
class _Mover:
    """Puts every tensor inside args and kwargs on the device, and the floating ones in the dtype."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, value: Any) -> Any:
        match value:
            case torch.Tensor():
                return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            case dict():
                return {key: self(item) for key, item in value.items()}
            case tuple() if hasattr(value, "_fields"):
                return type(value)(*map(self, value))
            case tuple() | list():
                return type(value)(map(self, value))
            case _:
                return value
