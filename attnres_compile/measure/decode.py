"""Decoding: one new token of a causal model of transformers, against a static cache of all tokens before it.

The example tokens but the last are in the cache, and the step is the last one: it attends to as many tokens as the
example has. Every call sets the cache's length back first, so all calls do the same work in the same place; that is
one kernel for all layers, on both sides of a comparison.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from attnres_compile.api.plain import plain
from attnres_compile.model.parameters import parameters_of
from attnres_compile.models.errors import MissingExtraError
from attnres_compile.models.example_inputs import first_line
from attnres_compile.models.transformers_source import find_class, import_transformers
from attnres_compile.report.comparison import MeasureError
from attnres_passes.torch_private.operators import copy_each

GRAPH_MODE = "reduce-overhead"
"""Inductor's mode that replays the step as a CUDA graph."""


CACHE_NAMES = ("cache", "past_key_values")
"""What a forward calls its cache: the first since transformers 5.24, which still takes the second but warns of it."""


class DecodeError(MeasureError):
    """A model cannot be decoded with a static cache; the message says why."""


class DecodeStep:
    """One step of ``model`` with its cache; calling it discards the output, and ``run`` returns it."""

    def __init__(self, model: nn.Module, token: torch.Tensor, cache: Any, graphs: bool) -> None:
        self.model, self.token, self.cache, self.graphs = model, token, cache, graphs
        self._cache = _as_argument(model, cache)
        self._lengths: list[torch.Tensor] = [layer.cumulative_length for layer in cache.layers]
        self._filled = [length.clone() for length in self._lengths]

    def set_back(self) -> None:
        """Forget the token that the last ``run`` added to the cache."""
        copy_each(self._lengths, self._filled)

    def run(self) -> Any:
        """Decode the token; ``set_back`` has to come before the next run."""
        if self.graphs:
            # Else the graph of one model is recorded as a continuation of the other's.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return self.model(input_ids=self.token, use_cache=True, **self._cache)

    def __call__(self) -> None:
        self.set_back()
        self.run()

    def cache_bytes(self) -> int:
        """Bytes of the keys and values of all layers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def check_decodable(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a model that cannot be decoded from these inputs, as far as can be said without a run.

    Args:
        model: of transformers.
        args: of its call.
        kwargs: of its call.

    Raises:
        DecodeError: says why.
    """
    name = type(model).__name__
    can_generate = getattr(model, "can_generate", None)
    if not callable(can_generate) or not can_generate():
        raise DecodeError(f"{name} is no causal language model of transformers")
    if getattr(model.config, "is_encoder_decoder", False):
        raise DecodeError(f"{name} is an encoder-decoder, and only decoders alone are decoded here")
    if args or set(kwargs) != {"input_ids"}:
        given = ", ".join([*(f"argument {index}" for index in range(len(args))), *kwargs]) or "nothing"
        raise DecodeError(f"{name} is called with {given}, and a step can only be made of input_ids alone")
    if _cache_name(model) is None:
        raise DecodeError(f"{name} takes no {' and no '.join(CACHE_NAMES)}")
    if kwargs["input_ids"].shape[-1] < 2:
        raise DecodeError("a step needs a token before it: pass --seq 2 or more")


def decode_step(model: nn.Module, tokens: torch.Tensor, graphs: bool) -> DecodeStep:
    """A step of ``model`` for the last of its tokens.

    The cache is filled by the model as it is to be measured, so that a prepared one's holds the keys and values of the
    rewritten model; Inductor compiles nothing for that.

    Args:
        model: plain or prepared, and not yet compiled.
        tokens: int64 ``[batch, seq]``.
        graphs: whether the model will be compiled with GRAPH_MODE.

    Raises:
        DecodeError: the model does not fill a static cache.
    """
    model.eval()
    try:
        cache = _empty_cache(model, tokens)
        _fill(model, tokens[:, :-1], cache)
    except (DecodeError, MissingExtraError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        inner = getattr(error, "inner_exception", None) or error
        raise DecodeError(
            f"{type(model).__name__} does not fill a StaticCache ({type(inner).__name__}: {first_line(inner)})"
        ) from error
    return DecodeStep(model, tokens[:, -1:].contiguous(), cache, graphs)


def _empty_cache(model: nn.Module, tokens: torch.Tensor) -> Any:
    """A cache of the tokens' length with its tensors made.

    A first eager run makes them: inside of a compiled region they could not be marked as static addresses.
    """
    static_layer = getattr(import_transformers().cache_utils, "StaticLayer", None)
    static_cache = find_class("StaticCache")
    if static_layer is None or static_cache is None:
        raise DecodeError("the installed transformers has no StaticCache: upgrade it")
    cache = static_cache(config=model.config, max_cache_len=tokens.shape[-1])
    other = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not static_layer})
    if other:
        raise DecodeError(
            f"the cache of {type(model).__name__} has layers of the kind {', '.join(other)}, which cannot be set back "
            "by a token"
        )
    # What it holds does not matter, so that a prepared model may run plain.
    as_it_was = contextlib.nullcontext() if parameters_of(model) is None else plain(model)
    with torch.no_grad(), as_it_was:
        model.forward(input_ids=tokens[:, :1], use_cache=True, **_as_argument(model, cache))
    if not cache.layers or not all(isinstance(_length(layer), torch.Tensor) for layer in cache.layers):
        raise DecodeError("the StaticCache of the installed transformers keeps no length: upgrade it")
    cache.reset()
    return cache


def _cache_name(model: nn.Module) -> str | None:
    """What the forward of ``model`` calls its cache; None if it takes none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


def _as_argument(model: nn.Module, cache: Any) -> dict[str, Any]:
    name = _cache_name(model)
    assert name is not None  # ``check_decodable`` has refused the others
    return {name: cache}


def _length(layer: Any) -> Any:
    return getattr(layer, "cumulative_length", None)


def _fill(model: nn.Module, tokens: torch.Tensor, cache: Any) -> None:
    forward: Any = model.forward
    if parameters_of(model) is not None:
        forward = torch.compile(model, backend="attnres", options={"inner": "eager"})
    with torch.no_grad():
        forward(input_ids=tokens, use_cache=True, **_as_argument(model, cache))
    # The step's graph is to be made as in a process that has only ever decoded.
    torch.compiler.reset()
