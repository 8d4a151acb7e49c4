"""One model of the zoo and what its source says about its residual streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Built = tuple[nn.Module, tuple, dict]

DECLINE_REASONS = frozenset(
    {
        "post_norm",
        "unnormed_read",
        "channels_first",
        "no_residual",
        "too_few_writes",
        "non_floating",
        "opaque",
        "gated",
        "interrupted",
    }
)


@dataclass(frozen=True)
class Expected:
    """One residual stream.

    `writes` counts the additions to the stream, `reads` the groups of readers of a state that belong
    together, the root's and the final norm's among them; `unnormed` is how many of those reads reach
    their sublayer, or leave the graph, without a normalisation. `read_modules` names, in graph order,
    the modules that do the reading, for the models where a test asserts names.
    """

    writes: int
    reads: int
    unnormed: int = 0
    read_modules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and the expected outcome.

    `build` seeds the generator and returns the model in the mode it is to be captured in, with the
    arguments of its forward. `streams` come in the order of the graph. `declined` is the reason when
    the whole model is to be left alone; for `unnormed_read` the streams are those that would be
    rewritten if unnormed reads were allowed, otherwise there are none. `also_declined` holds reasons of
    sublayer-like chains that are to be declined beside the accepted streams of the same model; the single
    additions inside activations and recurrences (`x + 0.04 * x ** 3`) are not listed.
    """

    name: str
    build: Callable[[], Built]
    streams: tuple[Expected, ...]
    declined: str | None
    why: str
    also_declined: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for reason in (*self.also_declined, *([self.declined] if self.declined else [])):
            if reason not in DECLINE_REASONS:
                raise ValueError(f"{self.name}: unknown reason {reason!r}")
        if not self.declined and not self.streams:
            raise ValueError(f"{self.name}: an accepted case needs a stream")
