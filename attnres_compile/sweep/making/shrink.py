"""Small configurations out of large ones: by the names of their fields, which ``fields.json`` holds.

Every width is divided by the same number, and so is a head's, so that what has to fit still fits: heads times their
width, a projector's output and the width it goes to, the stages of a pyramid. Depths, experts and vocabularies are cut.
Of lists with one item a layer, the same items are kept of all, one of each kind that there is and two at least.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

_DATA: dict[str, Any] = json.loads(resources.files(__package__).joinpath("fields.json").read_text(encoding="utf-8"))
_PATTERNS = {kind: re.compile("|".join(words)) for kind, words in _DATA["patterns"].items()}
_LIMITS: dict[str, int] = _DATA["limits"]


@dataclass(frozen=True)
class Size:
    """How small a model is made. divisor: of all widths; images: whether they are made small as well."""

    divisor: int
    images: bool


SIZES = tuple(Size(**one) for one in _DATA["sizes"])
"""In the order in which they are tried."""


def shrunk(values: dict[str, Any], size: Size) -> dict[str, Any]:
    """The values of a small configuration.

    Args:
        values: of the configuration and, as dictionaries with a ``model_type``, of those inside of it.
        size: how small.
    """
    return _shrunk(values, size, _Tokens(_LIMITS["vocabulary"]))


def overridden(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes``, dictionary by dictionary; a change to ``"(default)"`` takes the value out.

    Args:
        values: of a configuration.
        changes: of some of its fields.
    """
    result = dict(values)
    for name, change in changes.items():
        if change == "(default)":
            result.pop(name, None)
        elif isinstance(change, dict) and isinstance(result.get(name), dict):
            result[name] = overridden(result[name], change)
        else:
            result[name] = change
    return result


class _Tokens:
    """Numbers of special tokens inside a small vocabulary: those that were equal stay equal, and others differ."""

    def __init__(self, vocabulary: int) -> None:
        self._next, self._known = vocabulary, dict[int, int]()

    def small(self, number: int) -> int:
        if number < _LIMITS["small_token"]:
            return number
        if number not in self._known:
            self._next -= 1
            self._known[number] = self._next
        return self._known[number]


def _shrunk(values: dict[str, Any], size: Size, tokens: _Tokens) -> dict[str, Any]:
    kept = _kept_layers(values)
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name in _DATA["dropped"]:
            continue
        if isinstance(value, dict):
            result[name] = _shrunk(value, size, tokens)
        elif isinstance(value, (bool, str)) or value is None:
            result[name] = value
        elif isinstance(value, list) and len(value) in kept and name not in _DATA["not_by_layer"]:
            result[name] = [value[index] for index in kept[len(value)]]
        else:
            result[name] = _small(name, value, size, tokens, kept)
    return result


def _kept_layers(values: dict[str, Any]) -> dict[int, list[int]]:
    """Of each depth, the layers that stay: the first of every kind that its lists tell apart, and two at least."""
    depths = {value for name, value in values.items() if _is_depth(name, value)}
    return {depth: _first_of_each_kind(values, depth) for depth in depths}


def _first_of_each_kind(values: dict[str, Any], depth: int) -> list[int]:
    lists = [
        value
        for name, value in values.items()
        if isinstance(value, list) and len(value) == depth and name not in _DATA["not_by_layer"]
    ]
    kinds: dict[str, list[int]] = {}
    for index in range(depth):
        kinds.setdefault(json.dumps([one[index] for one in lists]), []).append(index)
    # Two of a kind, where that leaves few layers: repeats are what a search for layers may stumble over.
    each = 2 if len(kinds) <= _LIMITS["kinds_twice"] else 1
    chosen = sorted(index for indices in kinds.values() for index in indices[:each])
    return chosen[: _LIMITS["layers"]]


def _is_depth(name: str, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 2 and _named("depth", name)


def _named(kind: str, name: str) -> bool:
    # Some fields are tables by number, whose names are no words.
    return (
        isinstance(name, str) and bool(_PATTERNS[kind].fullmatch(name)) and not _PATTERNS[f"not_{kind}"].fullmatch(name)
    )


def _small(name: str, value: Any, size: Size, tokens: _Tokens, kept: dict[int, list[int]]) -> Any:
    if isinstance(value, list):
        return _small_list(name, value, size, tokens, kept)
    if not isinstance(value, int):
        return value
    if _is_depth(name, value) and value in kept:
        return len(kept[value])
    if _named("token", name):
        return tokens.small(value)
    for kind, limit in _DATA["cut"].items():
        if _named(kind, name):
            return min(value, limit)
    if _named("image", name):
        return min(value, _LIMITS["image"]) if size.images else value
    return _divided(value, size.divisor) if _named("width", name) else value


def _small_list(name: str, value: list[Any], size: Size, tokens: _Tokens, kept: dict[int, list[int]]) -> list[Any]:
    if _named("layer_index", name):
        depth = max((len(indices) for indices in kept.values()), default=2)
        return sorted({min(item, depth - 1) for item in value}) if all(isinstance(x, int) for x in value) else value
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        if _named("depths", name):
            return [min(item, 2) for item in value]
        is_divided = all(item < _LIMITS["width"] or item % size.divisor == 0 for item in value)
        if _named("width", name) and is_divided:
            return [_divided(item, size.divisor) for item in value]
    return [_small(name, item, size, tokens, kept) for item in value] if not _named("width", name) else value


def _divided(value: int, divisor: int) -> int:
    return value // divisor if value >= _LIMITS["width"] and value % divisor == 0 else value
