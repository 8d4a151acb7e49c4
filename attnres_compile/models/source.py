"""From the MODEL of a command line to a module with example inputs.

MODEL is a preset (``gpt2``), a transformers configuration (a directory or a ``config.json``), or a factory
(``package.module:function`` or ``path/to/file.py:function``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from attnres_compile.models.config_source import load_config, model_from_config
from attnres_compile.models.errors import FactoryError, UnknownPresetError
from attnres_compile.models.example_inputs import HOW_TO_GIVE_INPUTS, check_guess, guess_inputs, guess_labels
from attnres_compile.models.factory_source import call_factory
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.memory import check_fits
from attnres_compile.models.presets import PRESETS
from attnres_kernels.errors import closest


@dataclass(frozen=True)
class LoadedModel:
    """A module, in eval mode, and inputs it can be called with: ``model(*args, **kwargs)``."""

    name: str
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    training_kwargs: dict[str, Any] = field(default_factory=dict)
    """``kwargs`` and, where the model computes its own loss, ``labels``."""
    source: str = ""
    """Where the shape of the model comes from, in one line."""
    rewrite: Mapping[str, Any] = field(default_factory=dict)
    """Options of the rewrite that belong to its preset."""
    asked_seq: int | None = None
    """Tokens per row that were asked for, where the inputs have only ``options.capture_seq``."""
    guessed: bool = False
    """Whether the inputs were guessed."""


def load_model(text: str, options: LoadOptions | None = None) -> LoadedModel:
    """Resolve MODEL and build its example inputs.

    Args:
        text: MODEL.
        options: whose seed the random weights and inputs follow.

    Raises:
        ModelSourceError: one of its subclasses says what is wrong.
    """
    options = options or LoadOptions()
    options.torch_device()  # an error before any work, if it is not there
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        loaded = _resolve(text, options)
    # What has no data cannot be moved to where data is.
    device = torch.device("meta") if is_weightless(loaded.model) else options.torch_device()
    dtype = options.torch_dtype()

    def moved(inputs: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype), inputs)

    return dataclasses.replace(
        loaded,
        model=loaded.model.to(device=device, dtype=dtype).eval(),
        args=moved(loaded.args),
        kwargs=moved(loaded.kwargs),
        training_kwargs=moved(loaded.training_kwargs or loaded.kwargs),
    )


def is_weightless(model: nn.Module) -> bool:
    """Whether the parameters of ``model`` are on the meta device: shapes without data."""
    return any(parameter.is_meta for parameter in model.parameters())


def _resolve(text: str, options: LoadOptions) -> LoadedModel:
    preset = PRESETS.get(text)
    if preset is not None:
        config = _without_cache(preset.build_config())
        model = _built(lambda: preset.build_model(config), options)
        if options.weightless and options.capture_seq is None:
            options = dataclasses.replace(options, capture_seq=preset.capture_seq)
        loaded = _with_guessed_inputs(text, model, options, preset.source)
        return dataclasses.replace(loaded, rewrite=preset.rewrite)
    path = Path(text)
    if path.exists():
        config = _without_cache(load_config(path))
        name = config.name_or_path or path.resolve().stem
        model = _built(lambda: model_from_config(config, text), options)
        return _with_checked_inputs(name, model, options, text)
    if ":" in text:
        return _from_factory(text, options)
    raise UnknownPresetError(_unknown(text))


def _without_cache(config: Any) -> Any:
    """``config`` with generation's cache off: one forward over a whole sequence fills none in training."""
    for part in (config, config.get_text_config()):
        if getattr(part, "use_cache", False):
            part.use_cache = False
    return config


def _built(build: Callable[[], nn.Module], options: LoadOptions) -> nn.Module:
    """A model of a preset or configuration, on the meta device if ``options`` say so. Raises TooLargeError."""
    if not options.weightless:
        check_fits(build, options.torch_device(), options.torch_dtype())
    with torch.device("meta") if options.weightless else contextlib.nullcontext():
        return build()


def _with_guessed_inputs(name: str, model: Any, options: LoadOptions, source: str) -> LoadedModel:
    asked_seq = None
    with torch.device("meta") if is_weightless(model) else contextlib.nullcontext():
        inputs = guess_inputs(model, options)
        tokens = inputs.get("input_ids")
        if options.capture_seq is not None and tokens is not None and tokens.shape[1] > options.capture_seq:
            asked_seq = int(tokens.shape[1])
            inputs = guess_inputs(model, dataclasses.replace(options, seq=options.capture_seq))
        labels = guess_labels(model, inputs)
    return LoadedModel(name, model, (), inputs, inputs | labels, source, asked_seq=asked_seq, guessed=True)


def _with_checked_inputs(name: str, model: Any, options: LoadOptions, source: str) -> LoadedModel:
    loaded = _with_guessed_inputs(name, model, options, source)
    # Without data, whether the guess is right is seen when the model is captured.
    if not is_weightless(loaded.model):
        check_guess(loaded.model, loaded.kwargs)
    return loaded


def _from_factory(text: str, options: LoadOptions) -> LoadedModel:
    result = call_factory(text, options)
    match result.value:
        case nn.Module() as model if hasattr(model, "main_input_name"):
            return _with_checked_inputs(text, model, options, text)
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
    near = closest(text, PRESETS, most=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"{text!r} is not a preset: {hint}Pass one of {', '.join(PRESETS)}, a configuration directory or "
        "config.json, or module:factory"
    )
