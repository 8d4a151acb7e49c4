"""What there is to know about one model and its rewrite, as frozen data; every format is made of this alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from attnres_passes.ir.plan import Decline, Plan, Reason, short_source

SCHEMA_VERSION = 2
KIND = "inspection"


class Verdict(IntEnum):
    """How much of a model is rewritten; the value is the exit code of ``attnres inspect``."""

    ALL = 0
    PARTLY = 2
    NOTHING = 3


@dataclass(frozen=True)
class Border:
    """A border that a stream crosses. what: begins or ends there; blocks: complete ones that cross, with the root;
    has_partial: whether an open partial sum crosses with them.
    """

    what: str
    blocks: int
    has_partial: bool

    @property
    def sources(self) -> int:
        """Tensors of the stream that cross."""
        return self.blocks + self.has_partial


@dataclass(frozen=True)
class Site:
    """A place where a sublayer reads a stream, or writes to it, in the order of the graph.

    module: path of the norm or other reader, or of the sublayer that writes; source: ``file:line``; block: that it is
    summed into, or that is open or about to open, None behind the last one; state: writes that the stream holds here;
    shape: of the stream, with its dtype; sources: of a read; normed: whether a read's scale is lost behind it;
    schedule: of a read with two sources or more, "two_phase", "direct" or "naive"; group: reads that share a pass over
    completed blocks, from 0 in each layout of the stream; stage: pipeline stage, if the plan has any; border: that the
    stream crosses right before; query: what a read's is for, where q, k and v of an attention have reads of their own,
    or why there is one.
    """

    kind: Literal["read", "write"]
    module: str
    source: str
    block: int | None
    state: int
    shape: str
    sources: int | None = None
    normed: bool | None = None
    schedule: str | None = None
    group: int | None = None
    stage: int | None = None
    border: Border | None = None
    query: str = ""


@dataclass(frozen=True)
class StreamFacts:
    """One rewritten stream. root: path of the module that gives ``s_0``; root_source: its line; sites: in order."""

    name: str
    width: int
    dtype: str
    shape: str
    block_size: int
    num_blocks: int
    writes: int
    reads: int
    root: str
    root_source: str
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class GraphBreak:
    """A place where Dynamo ends a graph. cuts: the name of the stream that it cuts, '' if none; fix: what to do."""

    source: str
    reason: str
    cuts: str
    fix: str


@dataclass(frozen=True)
class AddedParameter:
    """Parameters of one kind that a stream gets. name: of the first, and the range of reads; count: of tensors."""

    name: str
    shape: tuple[int, ...]
    count: int
    init: str
    decay: str

    @property
    def elements(self) -> int:
        """Numbers in all of them."""
        return self.count * math.prod(self.shape)


@dataclass(frozen=True)
class Kernel:
    """Calls of one operator of ours in the lowered graph.

    implementation: "torch" or "triton"; calls: how many; sources, reads: the least and the most of a call, None where
    it has none; fused: what the call takes in besides; d: width; dtype: of the stream.
    """

    name: str
    implementation: str
    stream: str
    calls: int
    sources: tuple[int, int] | None
    reads: tuple[int, int] | None
    d: int
    dtype: str
    fused: str


@dataclass(frozen=True)
class Inspection:
    """All facts of one model.

    bound: what reads are bound to, and why; schedule: the cost model's tables; nodes: of all graphs, by level;
    environment: names and versions of what this was made with.
    """

    plan: Plan
    streams: tuple[StreamFacts, ...]
    breaks: tuple[GraphBreak, ...]
    parameters: tuple[AddedParameter, ...]
    kernels: tuple[Kernel, ...]
    bound: str
    schedule: str
    nodes: dict[str, int]
    environment: dict[str, str]

    @property
    def verdict(self) -> Verdict:
        """A stream left out by ``streams=`` is no miss; a stream that is a piece of a longer one is."""
        if not self.streams:
            return Verdict.NOTHING
        return Verdict.PARTLY if self.missed or self.plan.partial else Verdict.ALL

    @property
    def missed(self) -> tuple[Decline, ...]:
        """What was declined but for what the user chose to leave out."""
        return tuple(decline for decline in self.plan.declined if decline.reason != Reason.NOT_SELECTED)

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if self.verdict is Verdict.NOTHING:
            return f"nothing rewritten: {self._why_nothing}"
        writes, reads = (sum(getattr(stream, name) for stream in self.streams) for name in ("writes", "reads"))
        deep = sum(1 for stream in self.streams for site in stream.sites if (site.sources or 0) > 1)
        streams = f"{len(self.streams)} stream{'s' if len(self.streams) > 1 else ''}"
        done = f"{streams}, {writes} writes, {deep} of {reads} reads attend over depth"
        if self.verdict is Verdict.ALL:
            return f"all rewritten: {done}"
        if self.plan.partial:
            return f"{self.plan.partial_text}; {done}"
        return f"partly rewritten: {done}; left as it was: {_reasons(self.missed)}"

    @property
    def _why_nothing(self) -> str:
        if not self.breaks:
            return _reasons(self.plan.declined)
        cut = next((found for found in self.breaks if found.cuts), self.breaks[0])
        what = f"cuts the stream {cut.cuts}" if cut.cuts else "leaves no graph with a whole stream"
        return f"the graph break at {short_source(cut.source)} {what}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema_version``; ``inspection.schema.json`` describes it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "verdict": self.verdict.name.lower(),
            "exit_code": int(self.verdict),
            "headline": self.headline,
            "config": self.plan.config.to_dict(),
            "streams": list(map(_stream_data, self.streams)),
            "declined": [dataclasses.asdict(one) | {"reason": str(one.reason)} for one in self.plan.declined],
            "breaks": list(map(dataclasses.asdict, self.breaks)),
            "parameters": [dataclasses.asdict(added) | {"elements": added.elements} for added in self.parameters],
            "kernels": list(map(dataclasses.asdict, self.kernels)),
            "bound": self.bound,
            "nodes": dict(self.nodes),
            "environment": dict(self.environment),
        }


def _stream_data(stream: StreamFacts) -> dict[str, Any]:
    """Plain data; a site without a border, or without a word on its query, has no such key."""
    data = dataclasses.asdict(stream)
    for site in data["sites"]:
        if site["border"] is None:
            del site["border"]
        if not site["query"]:
            del site["query"]
    return data


def _reasons(declined: tuple[Decline, ...]) -> str:
    return ", ".join(dict.fromkeys(str(decline.reason) for decline in declined)) or "nothing was found"
