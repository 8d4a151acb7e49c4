"""Graph breaks that cut a residual stream, for what looks at graphs one by one: all but ``prepare`` and ``verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnres_compile.capture.capture import Capture
from attnres_compile.model.errors import GraphBreakError
from attnres_passes.ir.plan import Plan, Stream
from attnres_passes.torch_private.dynamo import GraphEnd

ONE_BY_ONE = (
    "Graphs are looked at one by one here; attnres_compile.prepare(model, ..) plans a stream across them. Take that "
    "line out of the forward for one graph to hold the stream; torch.compile(model, fullgraph=True) names it."
)
"""What is said and to be done where a stream is in no single graph."""


@dataclass(frozen=True)
class Cut:
    """A stream that goes on beyond its graph. place: where in the stream; end: of the graph that ends there."""

    stream: Stream
    place: str
    end: GraphEnd

    def error(self) -> GraphBreakError:
        """What says so in a compilation."""
        return GraphBreakError(
            f"{self._found()}. A stream can be rewritten only inside one graph: take that line out of the forward, "
            "or see it with torch.compile(model, fullgraph=True)."
        )

    def error_of_capture(self) -> GraphBreakError:
        """What says so of a model that is not compiled."""
        return GraphBreakError(f"{self._found()}. {ONE_BY_ONE}")

    def _found(self) -> str:
        return (
            f"a graph break cuts the residual stream {self.stream.name!r} {self.place}: {self.end.reason} at "
            f"{self.end.source}"
        )


def goes_on(stream: Stream) -> bool:
    """Whether the last state of a stream leaves its graph as it is, un-normed."""
    return any(not read.normed and read.state == len(stream.writes) for read in stream.reads)


def check_not_cut(stream: Stream, end: GraphEnd) -> None:
    """Check that a stream ends where its graph does.

    Args:
        stream: of the graph.
        end: how the graph ends.

    Raises:
        GraphBreakError: the graph ends in a break, and the stream goes on after it.
    """
    if end.is_break and goes_on(stream):
        raise Cut(stream, after_last_write(stream), end).error()


def after_last_write(stream: Stream) -> str:
    """Where a stream is cut that goes on behind its graph."""
    return f"after {stream.writes[-1].module or 'its last write'}"


def check_pieces(captured: Capture, plans: Sequence[Plan]) -> None:
    """Check that a model in pieces holds a whole stream in one of them.

    Args:
        captured: all graphs of the model.
        plans: one of each.

    Raises:
        GraphBreakError: no graph holds one.
    """
    if any(plan.streams for plan in plans):
        return
    place = f" at {captured.break_source} ({captured.break_reason})" if captured.break_source else ""
    found = {str(decline) for plan in plans for decline in plan.declined}
    raise GraphBreakError(
        f"the model breaks into {len(plans)} graphs{place}, and none of them holds a whole residual stream. "
        f"{ONE_BY_ONE} Found in the pieces:\n" + "\n".join(f"  - {text}" for text in sorted(found))
    )
