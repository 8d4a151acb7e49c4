"""Small models of transformers, by model type."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from torch import nn

from attnres_compile.models.transformers_source import import_transformers
from attnres_compile.sweep.making import inputs
from attnres_compile.sweep.making.adjustments import ADJUSTMENTS, Adjustment
from attnres_compile.sweep.making.errors import NotMadeError
from attnres_compile.sweep.making.shrink import SIZES, overridden, shrunk
from attnres_compile.sweep.making.small_model import SmallModel, Try, first_that_runs


def model_types() -> list[str]:
    """Every model type that the installed transformers has a configuration of. Raises MissingExtraError."""
    return sorted(import_transformers().CONFIG_MAPPING.keys())


def small_model(model_type: str) -> SmallModel:
    """A small model of a type.

    Args:
        model_type: of transformers.

    Raises:
        NotMadeError: it has no model that runs by itself, or none was found.
    """
    adjustment = ADJUSTMENTS.get(model_type, Adjustment())
    if adjustment.skip:
        raise NotMadeError(
            f"{adjustment.skip}: sweep the type that it is a part of, or take {model_type!r} out of "
            "attnres_compile/sweep/making/adjustments.json to try it"
        )
    return first_that_runs(_tries(model_type, adjustment))


def _tries(model_type: str, adjustment: Adjustment) -> Iterator[Try]:
    config_class = import_transformers().CONFIG_MAPPING[model_type]
    values = _defaults(config_class, adjustment).to_dict()
    model_class = _model_class(config_class, adjustment.model_class)
    sizes = [size for size in SIZES if adjustment.divisor in (None, size.divisor)]
    for size in sizes:
        small = overridden(shrunk(values, size), adjustment.config)
        how = f"widths / {size.divisor}" + ("" if size.images else ", images as they are")

        def build(small: dict[str, Any] = small) -> nn.Module:
            config = config_class.from_dict(dict(small))
            for part in _parts(config):
                if getattr(part, "use_cache", False):
                    part.use_cache = False
            module: nn.Module = model_class(config)
            return module

        def calls(module: nn.Module) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
            if adjustment.inputs is not None:
                yield (), inputs.made(dict(adjustment.inputs))
                return
            more = inputs.made(dict(adjustment.more_inputs))
            for kwargs in inputs.candidates(module):
                yield (), kwargs | more

        yield Try(how, build, calls)


def _defaults(config_class: Any, adjustment: Adjustment) -> Any:
    """The configuration without any values; with those that were adjusted where it cannot be without them.

    Raises NotMadeError.
    """
    try:
        return config_class()
    except Exception as error:  # of any class: it is about a field that has no default, or a wrong one
        if adjustment.config:
            return config_class(**adjustment.config)
        raise NotMadeError(
            f"{config_class.__name__}() is refused by transformers ({type(error).__name__}); give the fields that it "
            "needs, as config, in attnres_compile/sweep/making/adjustments.json"
        ) from error


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if hasattr(part, "sub_configs"):
            yield from _parts(part)


def _model_class(config_class: Any, name: str | None) -> Any:
    """The bare model of a configuration: ``AutoModel``'s, or else the plainest class of its module that takes it.

    Raises NotMadeError.
    """
    transformers = import_transformers()
    if name is not None:
        found = [one for one in _classes_beside(config_class) if one.__name__ == name]
        return found[0] if found else getattr(transformers, name)
    try:
        mapped = transformers.MODEL_MAPPING.get(config_class, None)
    except (AttributeError, ImportError, ValueError) as error:  # the name is in no package
        raise NotMadeError(
            f"transformers lists a model for {config_class.__name__} that it cannot load ({type(error).__name__}: "
            f"{error}); name a model_class for this type in attnres_compile/sweep/making/adjustments.json"
        ) from error
    if mapped is not None:
        return mapped[0] if isinstance(mapped, (tuple, list)) else mapped
    fitting = [one for one in _classes_beside(config_class) if getattr(one, "config_class", None) is config_class]
    fitting = [one for one in fitting if "PreTrained" not in one.__name__ and "Pretrained" not in one.__name__]
    if not fitting:
        raise NotMadeError(
            f"transformers has no model that takes a {config_class.__name__}: name a model_class for this type in "
            "attnres_compile/sweep/making/adjustments.json, or sweep the type that it is a part of"
        )
    return min(fitting, key=lambda one: (not one.__name__.endswith("Model"), len(one.__name__)))


def _classes_beside(config_class: Any) -> list[Any]:
    """The model classes in the modules of a configuration's package."""
    package = importlib.import_module(config_class.__module__.rpartition(".")[0])
    base = import_transformers().PreTrainedModel
    names = [one.name for one in pkgutil.iter_modules(package.__path__) if one.name.startswith("modeling_")]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return [
        found
        for module in modules
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, base) and found.__module__ == module.__name__
    ]
