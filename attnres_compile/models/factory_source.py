"""Models of the user's own code: ``package.module:function`` or ``path/to/file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from attnres_compile.models.errors import FactoryError, LoadOptionError
from attnres_compile.models.example_inputs import first_line
from attnres_compile.models.load_options import LoadOptions
from attnres_kernels.errors import closest


@dataclass(frozen=True)
class FactoryResult:
    """What a factory returned, not yet judged, and the names of the options it was given."""

    value: Any
    taken: frozenset[str]

    def require_honoured(self, text: str, options: LoadOptions) -> None:
        """Refuse a batch or length that was asked of a factory that takes none.

        Args:
            text: MODEL.
            options: that were asked for.

        Raises:
            LoadOptionError: the factory has no such parameter.
        """
        asked = {"batch": options.batch != 1, "seq": options.seq is not None}
        for name in (name for name, was_asked in asked.items() if was_asked and name not in self.taken):
            raise LoadOptionError(f"{text} has no parameter {name!r}: add one to the factory, or leave --{name} out")


def call_factory(text: str, options: LoadOptions) -> FactoryResult:
    """Import and call a factory, with those of ``batch, seq, dtype, device`` that it has parameters for.

    Args:
        text: ``module:function`` or ``file.py:function``.
        options: that are offered to it.

    Raises:
        FactoryError: it cannot be imported, or raises.
    """
    module_name, _, function_name = text.rpartition(":")
    factory = _find(_import(text, module_name), module_name, function_name)
    accepted = _accepted(factory, options)
    try:
        return FactoryResult(factory(**accepted), frozenset(accepted))
    except Exception as error:
        place = _place(error, inspect.getfile(factory))
        raise FactoryError(
            f"{text} raised {type(error).__name__}: {first_line(error)} (at {place}): correct the factory"
        ) from error


def _import(text: str, module_name: str) -> ModuleType:
    try:
        with _working_directory_importable():
            return _import_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.split(".")[0] == error.name.split(".")[0]:
            raise FactoryError(
                f"there is no module {error.name!r}: in module:factory the module is an importable name or a "
                ".py file; correct it, or run from the directory that holds it"
            ) from error
        raise FactoryError(_import_failed(text, error)) from error
    except Exception as error:
        raise FactoryError(_import_failed(text, error)) from error


def _import_failed(text: str, error: BaseException) -> str:
    return (
        f"importing {text.rpartition(':')[0]} raised {type(error).__name__}: {first_line(error)} "
        f"(at {_place(error)}): correct the module"
    )


def _import_file(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ModuleNotFoundError(f"no file {path}", name=path)
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as a module", name=path)
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, so that classes of the file can be pickled by their module's name.
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
        raise
    return module


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """The script of a console entry point does not see the user's directory, unlike ``python -m``."""
    directory = os.getcwd()
    if directory in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)


def _find(module: ModuleType, module_name: str, function_name: str) -> Callable[..., Any]:
    found = getattr(module, function_name, None)
    if callable(found):
        result: Callable[..., Any] = found
        return result
    if found is not None:
        raise FactoryError(f"{module_name}:{function_name} is a {type(found).__name__}: name a function")
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    near = closest(function_name, names, most=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "name one of its functions"
    raise FactoryError(f"{module_name} has no {function_name!r}: {hint}")


def _accepted(factory: Callable[..., Any], options: LoadOptions) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    offered = {
        "batch": options.batch,
        "seq": options.seq or options.default_seq,
        "dtype": options.torch_dtype(),
        "device": options.torch_device(),
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in offered.items() if takes_any or name in parameters}


def _place(error: BaseException, file: str | None = None) -> str:
    """``file:line`` of the innermost frame of ``error`` in ``file``, or of the innermost of all."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    own = [frame for frame in frames if frame.filename == file]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"
