"""A small model that runs, and how it was made."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnres_compile.sweep.making.errors import NotMadeError
from attnres_kernels.errors import AttnResError

MAX_PARAMETERS = 60_000_000
_SECONDS_OF_TRIES = 60.0
"""Of this process: on a machine that does other things as well, no more is tried than on one that does not."""


@dataclass(frozen=True)
class SmallModel:
    """A module in eval mode that has run on these inputs. how: in which size, and on which inputs, in a few words."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    how: str


@dataclass(frozen=True)
class Try:
    """One way to make a model. inputs: what it may run on, once it is there."""

    how: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Iterable[tuple[tuple[Any, ...], dict[str, Any]]]]


def first_that_runs(tries: Iterable[Try]) -> SmallModel:
    """The first model of several that is built, is small, and runs.

    Args:
        tries: the likeliest first.

    Raises:
        NotMadeError: none; with the first problem of each.
    """
    problems: list[str] = []
    end = time.process_time() + _SECONDS_OF_TRIES
    for one in tries:
        if problems and time.process_time() > end:
            problems.append("out of time")
            break
        try:
            torch.manual_seed(0)
            _require_small(one.build)
            module = one.build().to(torch.float32).eval()
        except Exception as error:  # what a library raises for values that do not fit is any class
            problems.append(f"{one.how}: {_words(error)}")
            continue
        found = _running(module, one, problems)
        if found is not None:
            return found
    raise NotMadeError(
        f"{'; '.join(dict.fromkeys(problems)) or 'nothing to try'}; give what it needs, as config, inputs or "
        "model_class, in attnres_compile/sweep/making/adjustments.json"
    )


def _running(module: nn.Module, one: Try, problems: list[str]) -> SmallModel | None:
    first = True
    for args, kwargs in one.inputs(module):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module(*args, **kwargs)
        except Exception as error:  # as above
            if first:
                problems.append(f"{one.how}, on {', '.join(kwargs) or 'one tensor'}: {_words(error)}")
            first = False
            continue
        return SmallModel(module, args, kwargs, f"{one.how}, on {_shapes(args, kwargs)}")
    if first:
        problems.append(f"{one.how}: no inputs are known for {getattr(module, 'main_input_name', 'it')}")
    return None


def _require_small(build: Callable[[], nn.Module]) -> None:
    """Count the parameters without their data. Raises NotMadeError for too many."""
    with torch.device("meta"):
        try:
            count = sum(parameter.numel() for parameter in build().parameters())
        except (NotImplementedError, RuntimeError):
            return  # its construction looks at numbers; the memory limit of the process holds all the same
    if count > MAX_PARAMETERS:
        raise NotMadeError(f"{count:,} parameters")


def _words(error: BaseException) -> str:
    text = " ".join((error.message if isinstance(error, AttnResError) else str(error)).split())
    return f"{type(error).__name__}: {text[:200]}"


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return ", ".join(_shape(name, value) for name, value in _named(args, kwargs))


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f"argument {index}", value) for index, value in enumerate(args))
    yield from kwargs.items()


def _shape(name: str, value: Any) -> str:
    return f"{name} {list(value.shape)}" if isinstance(value, torch.Tensor) else name
