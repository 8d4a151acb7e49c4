"""Options of the rewrite: one frozen dataclass for the API, the command line and saved plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from attnres_kernels.definition.mechanism import Mechanism
from attnres_kernels.errors import AttnResError, closest

Scale = Literal["mean", "sum"]
Schedule = Literal["auto", "direct", "two_phase", "naive"]
Inner = Literal["inductor", "aot_eager", "eager"]
OnDecline = Literal["error", "warn", "ignore"]
OnPlain = Literal["error", "warn"]
KeyNorm = Literal["weight", "plain", "none"]
Mixing = Literal["softmax", "sigmoid"]
Query = Literal["learned", "input"]
ValueNorm = Literal["none", "plain"]
Queries = Literal["one", "qkv"]

CHOICES: dict[str, tuple[str, ...]] = {
    "scale": get_args(Scale),
    "schedule": get_args(Schedule),
    "inner": get_args(Inner),
    "on_decline": get_args(OnDecline),
    "on_plain": get_args(OnPlain),
    "key_norm": get_args(KeyNorm),
    "mixing": get_args(Mixing),
    "query": get_args(Query),
    "value_norm": get_args(ValueNorm),
    "queries": get_args(Queries),
}
MECHANISM = Mechanism._fields
"""Options that say how a read computes its weights, and what it weighs (docs/variants.md)."""
DEFAULT_NUM_BLOCKS = 8


class ConfigError(AttnResError, ValueError):
    """An option is unknown, out of range, or contradicts another one."""


@dataclass(frozen=True)
class AttnResConfig:
    """What to do to a model.

    num_blocks: blocks per stream, ``block_size = ceil(writes / num_blocks)``; 8 when neither it nor block_size is
        given, None when block_size is.
    block_size: writes per block; excludes num_blocks. 1 is Full AttnRes (paper equation 4).
    scale: "mean" is the paper's softmax average; "sum" multiplies it by the number of sources, so that zero
        queries give back the plain residual sum.
    schedule: how the reads of a block are computed; all schedules give the same numbers.
    inner: the compiler that the rewritten graph is handed to.
    stages: number of pipeline chunks to mark the nodes of the rewritten graph with, balanced by FLOPs; None for none.
    on_decline: what to do about a model in which no stream can be rewritten.
    on_plain: what to do when a prepared model is about to run without its rewrite, outside of
        ``attnres_compile.plain``: raise NotInForceError, or warn once per cause.
    allow_unnormed: rewrite streams although reads that feed a write are not normed.
    streams: names of the streams to rewrite; None for all.
    eps: added to the mean square in the key norm (paper equation 3).
    regions: compile what is alike in all layers once, so that the time to compile hardly grows with depth; Python then
        calls the parts of a graph one after the other. None does so in training for layers that are compiled by
        themselves, and for no whole model.
    sequence_group: name of a process group, ``group.group_name``, over whose ranks the stored blocks are cut along the
        sequence (paper section 4.2); None keeps all of them on every rank. For inference.

    The rest are variants of the mechanism for those who compare; the defaults are the paper's (docs/variants.md).

    key_norm: the RMSNorm on the keys, with a learned weight, "plain" without one, or "none".
    logit_scale: factor of the logits.
    mixing: "softmax" over the sources, or "sigmoid" of each logit by itself.
    window: completed blocks that a read attends to beside the root and the open partial sum, the last ones.
    heads: parts of the width that have weights of their own.
    query: one learned vector per read, or "input", made of its newest source by a learned matrix.
    value_norm: what is mixed: the sources as they are, "none", or each over its root mean square, "plain".
    queries: "one" a read, or "qkv": q, k and v of an attention have a read each where they are told apart.

    Raises ConfigError.
    """

    num_blocks: int | None = None
    block_size: int | None = None
    scale: Scale = "mean"
    schedule: Schedule = "auto"
    inner: Inner = "inductor"
    stages: int | None = None
    on_decline: OnDecline = "error"
    on_plain: OnPlain = "error"
    allow_unnormed: bool = False
    streams: tuple[str, ...] | None = None
    eps: float = 1e-6
    regions: bool | None = None
    sequence_group: str | None = None
    key_norm: KeyNorm = "weight"
    logit_scale: float = 1.0
    mixing: Mixing = "softmax"
    window: int | None = None
    heads: int = 1
    query: Query = "learned"
    value_norm: ValueNorm = "none"
    queries: Queries = "one"

    def __post_init__(self) -> None:
        if self.num_blocks is not None and self.block_size is not None:
            raise ConfigError(
                f"num_blocks={self.num_blocks} and block_size={self.block_size} are both given, and each "
                "determines the other; give one of them."
            )
        if self.num_blocks is None and self.block_size is None:
            object.__setattr__(self, "num_blocks", DEFAULT_NUM_BLOCKS)
        for name in ("num_blocks", "block_size", "stages", "window"):
            self._check_positive_integer(name)
        for name, choices in CHOICES.items():
            self._check_choice(name, choices)
        if isinstance(self.streams, str):
            raise ConfigError(f"streams={self.streams!r} is a string; give a list of names: [{self.streams!r}].")
        if self.streams is not None:
            self._check_names()
            object.__setattr__(self, "streams", tuple(self.streams))
        self._check_flag("allow_unnormed")
        if self.regions is not None:
            self._check_flag("regions")
        if not isinstance(self.eps, (int, float)) or not 0 <= self.eps < math.inf:
            raise ConfigError(f"eps={self.eps!r} is not a number >= 0; give a small one such as 1e-6.")
        self._check_ranks()
        self._check_mechanism()
        if self.regions and self.inner == "eager":
            raise ConfigError("regions=True compiles parts, and inner='eager' compiles nothing; leave one of them out.")

    def _check_flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} is not True or False; give one of them.")

    def _check_ranks(self) -> None:
        if self.sequence_group is not None and not isinstance(self.sequence_group, str):
            raise ConfigError(f"sequence_group={self.sequence_group!r} is no name; give group.group_name, or None.")
        if self.sequence_group is not None and self.stages is not None:
            raise ConfigError("sequence_group and stages are both given, and are two ways to use ranks; give one.")

    def _check_mechanism(self) -> None:
        if self.heads is None:
            raise ConfigError("heads=None is not an integer >= 1; give one, or leave it out.")
        self._check_positive_integer("heads")
        value = self.logit_scale
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"logit_scale={value!r} is not a number > 0; give one, such as width ** -0.5.")
        if self.sequence_group is not None and not self.mechanism.is_paper:
            raise ConfigError(
                f"sequence_group and {self.mechanism} are both given, and blocks are cut along the sequence for the "
                "paper's mechanism alone; leave sequence_group out."
            )
        reason = self.mechanism.by_definition
        if reason and self.schedule not in ("auto", "naive"):
            raise ConfigError(
                f"schedule={self.schedule!r} is asked for, and {reason}; leave schedule out, and reads are computed by "
                "their definition."
            )

    def _check_names(self) -> None:
        names = self.streams
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"streams={names!r} is not a list of names; give one such as ['decoder'], or None.")

    def _check_positive_integer(self, name: str) -> None:
        value = getattr(self, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{name}={value!r} is not an integer >= 1; give one, or leave it out.")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            raise ConfigError(f"{name}={value!r} is not one of {listed}; {_nearest(str(value), choices)}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> AttnResConfig:
        """Build from ``options=`` of torch.compile or keywords; an unknown key names the closest valid one.

        Raises ConfigError.
        """
        given = dict(options or {})
        names = tuple(field.name for field in dataclasses.fields(cls))
        for key in given:
            if key not in names:
                raise ConfigError(f"unknown option {key!r}; {_nearest(key, names)}")
        return cls(**given)

    @cached_property
    def mechanism(self) -> Mechanism:
        """How a read computes its weights, and what it weighs."""
        return Mechanism(**{name: getattr(self, name) for name in MECHANISM})

    def check_width(self, stream: str, width: int) -> None:
        """Check that a stream can be read as asked.

        Args:
            stream: its name.
            width: of its last axis.

        Raises:
            ConfigError: ``heads`` does not divide the width.
        """
        if width % self.heads:
            raise ConfigError(f"heads={self.heads} does not divide the width {width} of {stream!r}; give a divisor.")

    @property
    def by_definition(self) -> bool:
        """Whether reads are computed by their definition: as ``schedule`` says, or since no schedule knows better."""
        return self.schedule == "naive" or bool(self.mechanism.by_definition)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the mechanism as far as it is not the paper's; ``from_options`` of it gives an equal config."""
        differs = self.mechanism.differences
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in MECHANISM or name in differs
        }


def _nearest(given: str, valid: tuple[str, ...]) -> str:
    close = closest(given, valid, cutoff=0.4)
    if close:
        return f"did you mean {close[0]!r}?"
    return "valid are " + ", ".join(repr(name) for name in valid) + "."
