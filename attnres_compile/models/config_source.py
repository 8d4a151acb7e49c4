"""Models of transformers configurations: a directory with a ``config.json``, or the file. No download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attnres_compile.models.errors import ConfigSourceError
from attnres_compile.models.transformers_source import explained_imports, find_class, import_transformers
from attnres_kernels.errors import closest

# In the order they are tried for a configuration that names no architecture.
_CLASS_MAPPINGS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_MAPPING",
)
_ENCODER_DECODER_ONLY = _CLASS_MAPPINGS[:2]


def load_config(path: Path) -> Any:
    """The transformers configuration at ``path``. Raises ConfigSourceError, MissingExtraError."""
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigSourceError(f"{path} holds no config.json: pass a directory that does") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        if file.suffix == ".py":
            raise ConfigSourceError(
                f"{file} is Python, which has more than one name in it: name what builds the model, {file}:FUNCTION"
            ) from error
        raise ConfigSourceError(
            f"{file} cannot be read as a configuration ({error}): pass a transformers config.json"
        ) from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise ConfigSourceError(f"{file} has no model_type: pass a transformers config.json")
    known = import_transformers().CONFIG_MAPPING
    model_type = values.pop("model_type")
    if model_type not in known:
        near = closest(str(model_type), known.keys(), most=3, cutoff=0.6)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise ConfigSourceError(
            f"{file} has model_type {model_type!r}, which the installed transformers does not know{hint}: "
            "correct it, upgrade transformers, or name a module:factory that builds the model"
        )
    with explained_imports(f"the configuration {model_type}"):
        config_class = known[model_type]
    try:
        return config_class.from_dict(values)
    except Exception as error:
        raise ConfigSourceError(_does_not_build(str(file), error)) from error


def model_from_config(config: Any, name: str) -> Any:
    """A model with random weights, of the architecture that the configuration names or of the likeliest one.

    Args:
        config: of transformers.
        name: of where it comes from, for messages.

    Raises:
        ConfigSourceError: transformers has not that class, or none for this configuration.
    """
    named = tuple(config.architectures or ())
    found = [model_class for model_class in map(find_class, named) if model_class is not None]
    if named and not found:
        raise ConfigSourceError(
            f"{name} names the architecture {named[0]}, which the installed transformers does not have: "
            "correct it, upgrade transformers, or name a module:factory that builds the model"
        )
    model_class = found[0] if found else _likeliest_class(config)
    if model_class is None:
        raise ConfigSourceError(
            f'{name} ({type(config).__name__}) has no model class in transformers: set "architectures" in '
            "the config.json, or name a module:factory that builds the model"
        )
    try:
        return model_class(config)
    except Exception as error:
        raise ConfigSourceError(_does_not_build(name, error)) from error


def _does_not_build(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or "no message"
    return f"transformers cannot build {name} ({type(error).__name__}: {reason}): correct the config.json"


def _likeliest_class(config: Any) -> Any:
    transformers = import_transformers()
    for mapping_name in _CLASS_MAPPINGS:
        if mapping_name in _ENCODER_DECODER_ONLY and not getattr(config, "is_encoder_decoder", False):
            continue
        with explained_imports(f"a model of {type(config).__name__}"):
            found = getattr(transformers, mapping_name).get(type(config), None)
        if found is not None:
            return found[0] if isinstance(found, (tuple, list)) else found
    return None
