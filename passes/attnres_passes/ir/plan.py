"""The plan: what is rewritten, what is declined, and why. Frozen; parameters, rewrite and reports all read it.

Vocabulary (paper section 3, arXiv 2603.15031): a residual stream is a chain of states ``s_0 .. s_W`` with
``s_i = s_{i-1} + v_i``; ``s_0`` is the root, ``v_i`` the i-th write, and a read is a reader of a state other than
the next addition.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from tabulate import tabulate

from attnres_kernels.definition.mechanism import Mechanism
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ir.read_parameters import elements_of_read

SCHEMA_VERSION = 1
_PLACES_SHOWN = 3


class Reason(StrEnum):
    """Why a residual stream is left as it is."""

    POST_NORM = "post_norm"
    UNNORMED_READ = "unnormed_read"
    CHANNELS_FIRST = "channels_first"
    TOO_FEW_WRITES = "too_few_writes"
    NO_RESIDUAL = "no_residual"
    NON_FLOATING = "non_floating"
    FORKED = "forked"
    OPAQUE = "opaque"
    GRADIENT_HOOK = "gradient_hook"
    INSIDE_SUBLAYER = "inside_sublayer"
    NO_SUBLAYER = "no_sublayer"
    RECURRENCE = "recurrence"
    CLAMPED = "clamped"
    GATED = "gated"
    OTHER_SUM = "other_sum"
    INTERRUPTED = "interrupted"
    LANES = "lanes"
    REVERSIBLE = "reversible"
    DEPTH_ATTENTION = "depth_attention"
    NOT_SELECTED = "not_selected"


@dataclass(frozen=True)
class Write:
    """One sublayer's output ``v_i``, added to the stream.

    module: path of the sublayer; source: ``file:line`` of the addition; block: the block that it is summed into,
    from 1 (block 0 is the root).
    """

    module: str
    source: str
    block: int


@dataclass(frozen=True)
class Read:
    """A reader of state ``s_state``; a depth attention after the rewrite.

    module: path of the reader, usually a norm; source: its ``file:line``; num_sources: completed blocks plus the
    open partial sum (paper equation 6); block: the block that is open, or about to open, None behind the last one;
    state: writes that the state holds; normed: whether all that the read leads to is invariant to its scale; returned:
    whether the reader is no operation, and the state is given back as it is. Under ``queries="qkv"`` only, argument:
    "q", "k" or "v" of an attention if the read is for that alone, "rest" if it is for what else the norm leads to;
    one_query: why the read is for all, if it is.
    """

    module: str
    source: str
    num_sources: int
    block: int | None
    state: int
    normed: bool
    returned: bool = False
    argument: str = ""
    one_query: str = ""

    @property
    def query_text(self) -> str:
        """What its query is for, or why it has one; '' where there is nothing to say."""
        if self.argument:
            return "of the rest" if self.argument == "rest" else f"of {self.argument}"
        return f"one: {self.one_query}" if self.one_query else ""


@dataclass(frozen=True)
class LeftOut:
    """An addition to the same running sum as a stream's that the stream does not hold.

    module: path of the sublayer; source: ``file:line`` of the addition.
    """

    module: str
    source: str


@dataclass(frozen=True)
class Stream:
    """A residual stream to rewrite, its writes in blocks (paper equation 5).

    width: size of the last axis; left_out: other additions of the same chain, before or behind; none if it is whole.
    """

    name: str
    width: int
    writes: tuple[Write, ...]
    reads: tuple[Read, ...]
    block_size: int
    num_blocks: int
    left_out: tuple[LeftOut, ...] = ()

    @property
    def parametrized_reads(self) -> tuple[Read, ...]:
        """Reads with two sources or more, in read order: those that own a pseudo-query and a key norm."""
        return tuple(read for read in self.reads if read.num_sources > 1)


@dataclass(frozen=True)
class Decline:
    """A stream left exactly as it is. message: what was found and what to do; writes: its number of additions."""

    reason: Reason
    message: str
    module: str
    source: str
    writes: int = 0

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.module, short_source(self.source)) if part)
        return f"{self.reason}: {self.message}" + (f" [{place}]" if place else "")


@dataclass(frozen=True)
class Plan:
    """Everything that the rewrite does to a model; ``str()`` is a table."""

    streams: tuple[Stream, ...]
    declined: tuple[Decline, ...]
    config: AttnResConfig

    @property
    def depth_reads(self) -> dict[ReadId, Read]:
        """The reads with two sources or more, which become depth attentions, stream by stream in read order."""
        return {
            ReadId(s, k): read
            for s, stream in enumerate(self.streams)
            for k, read in enumerate(stream.reads)
            if read.num_sources > 1
        }

    @property
    def partial(self) -> bool:
        """Whether a stream is only a piece of what runs through the model: others of its additions are left out.

        A stream that is declined, or left out by ``streams=``, makes no plan partial unless it is such a piece.
        """
        return any(stream.left_out for stream in self.streams)

    @property
    def partial_text(self) -> str:
        """What is left out of which stream, in one line; '' for a plan that is not partial."""
        pieces = (_left_out_text(stream) for stream in self.streams if stream.left_out)
        return f"partly rewritten: {'; '.join(pieces)}" if self.partial else ""

    @property
    def fingerprint(self) -> str:
        """32 hex digits of what the parameters mean: a model computes the same from them under plans with equal ones.

        That is scale, eps and mechanism, and of each stream its width, its blocks, and which state each read is of;
        names of streams only where some were left out by ``streams=``. Neither source lines nor module paths play a
        part: they are others on another machine or under another torch, and where a sublayer is checkpointed.
        """
        meaning = [
            [stream.width, stream.block_size, len(stream.writes)]
            + [[read.state, read.num_sources] for read in stream.reads]
            for stream in self.streams
        ]
        chosen = any(decline.reason is Reason.NOT_SELECTED for decline in self.declined)
        names = [stream.name for stream in self.streams] if chosen else []
        # The paper's mechanism goes without saying, so that plans of before there were others keep their fingerprints.
        differs = [list(self.config.mechanism.differences.items())] if not self.config.mechanism.is_paper else []
        text = json.dumps([self.config.scale, float(self.config.eps), meaning, names, *differs])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema_version``; ``Plan.from_dict`` of it gives an equal plan."""
        data = {**dataclasses.asdict(self), "config": self.config.to_dict()}
        if self.config.queries == "one":
            # Neither is there then, and earlier versions know neither.
            for read in (read for stream in data["streams"] for read in stream["reads"]):
                del read["argument"], read["one_query"]
        return {"schema_version": SCHEMA_VERSION, "partial": self.partial, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that ``to_dict`` was taken of. Raises KeyError or TypeError on data of another shape."""
        streams = tuple(
            Stream(
                **{
                    **stream,
                    "writes": tuple(Write(**write) for write in stream["writes"]),
                    "reads": tuple(_read_from(read, stream["num_blocks"]) for read in stream["reads"]),
                    "left_out": tuple(LeftOut(**one) for one in stream.get("left_out", ())),
                }
            )
            for stream in data["streams"]
        )
        declined = tuple(Decline(**{**decline, "reason": Reason(decline["reason"])}) for decline in data["declined"])
        return cls(streams, declined, AttnResConfig.from_options(data["config"]))

    def __str__(self) -> str:
        parts = [self.partial_text] if self.partial else []
        parts.extend(_stream_text(stream, self.config.mechanism) for stream in self.streams)
        if self.declined:
            parts.append("declined:\n" + "\n".join(f"  - {decline}" for decline in self.declined))
        return "\n\n".join(parts) if parts else "nothing to rewrite"


def _read_from(data: Mapping[str, Any], num_blocks: int) -> Read:
    """A read of saved data; plans that version 0.1.0 saved name a block behind the last one."""
    read = Read(**data)
    return dataclasses.replace(read, block=None) if read.block is not None and read.block > num_blocks else read


def short_source(source: str) -> str:
    """``modeling_gpt2.py:388`` for a full path with a line."""
    return PurePath(source).name


def _left_out_text(stream: Stream) -> str:
    """``stream h: 4 more additions of its chain are left out (h.0 [model.py:12], ..)``."""
    count = len(stream.left_out)
    places = list(dict.fromkeys(_place(one.module, one.source) for one in stream.left_out))
    shown = ", ".join(places[:_PLACES_SHOWN]) + (", .." if len(places) > _PLACES_SHOWN else "")
    more = "1 more addition of its chain is" if count == 1 else f"{count} more additions of its chain are"
    return f"stream {stream.name} holds {len(stream.writes)} writes, and {more} left out ({shown})"


def _place(module: str, source: str) -> str:
    return f"{module} [{short_source(source)}]" if module else short_source(source)


def _stream_text(stream: Stream, mechanism: Mechanism) -> str:
    added = elements_of_read(mechanism, stream.width) * len(stream.parametrized_reads)
    blocks = f"{stream.num_blocks} block{'s' if stream.num_blocks > 1 else ''} of {stream.block_size}"
    head = (
        f"stream {stream.name}: width {stream.width}, {len(stream.writes)} writes in {blocks}, "
        f"{len(stream.reads)} reads, {added:,} parameters added"
        + ("" if mechanism.is_paper else f"; variant of the mechanism: {mechanism}")
    )
    rows = []
    for state in range(len(stream.writes) + 1):
        if state > 0:
            write = stream.writes[state - 1]
            rows.append(["write", write.module, short_source(write.source), write.block, "", ""])
        rows.extend(
            [
                "read",
                read.module,
                short_source(read.source),
                "" if read.block is None else read.block,
                read.num_sources,
                "yes" if read.normed else "no",
                *([] if mechanism.queries == "one" else [read.query_text]),
            ]
            for read in stream.reads
            if read.state == state
        )
    headers = ["", "module", "source", "block", "sources", "normed", *(["query"] if mechanism.queries != "one" else [])]
    table = tabulate(rows, headers=headers, disable_numparse=True)
    return f"{head}\n{table}"
