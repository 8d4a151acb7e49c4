"""Whose frame a graph is of."""

from __future__ import annotations

from typing import Any

from attnres_passes.torch_private.captures.compiled_frame import compiled_frame
from tests.passes.helpers import Part, double, sample, seen_by
from tests.passes.torch_private.test_dynamo import Broken, Loop


def test_both_sides_of_a_break_are_of_one_function() -> None:
    model = Broken()
    first, second = seen_by(lambda gm: compiled_frame(), model, sample())
    assert first.code is second.code is Broken.forward.__code__
    assert first.subject is second.subject is model
    assert (first.is_resumed, second.is_resumed) == (False, True)


def test_what_a_skipped_frame_calls_is_of_another() -> None:
    model = Loop()
    found = seen_by(lambda gm: compiled_frame(), model, sample())
    assert {id(frame.subject) for frame in found} == {id(model.part)}
    assert {frame.code for frame in found} == {Part.forward.__code__}


def test_subject_of_a_wrapper_is_its_first_argument() -> None:
    part = Part()

    def wrapper(*args: Any, scale: int = 2) -> Any:
        return part(args[0]) * scale

    x = sample()
    (found,) = seen_by(lambda gm: compiled_frame(), wrapper, x)
    assert found.subject is x
    (found,) = seen_by(lambda gm: compiled_frame(), double, x)
    assert found.subject is x
