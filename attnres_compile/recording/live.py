"""``depth_weights``: a recording that is running. Off unless one is open, and bounded in memory however long it is."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attnres_compile.model.errors import ConfigError, NotPreparedError, RecordingError
from attnres_compile.model.parameters import AttnResParameters, parameters_of, prepared_within, unwrapped
from attnres_compile.recording.recorded import RecordedRead, RecordedWrite, Sublayer
from attnres_compile.recording.weights import DepthWeights, Views
from attnres_kernels.operators.statistics import READ_EXTRA
from attnres_passes.ir.plan import Plan, short_source
from attnres_passes.ir.read_id import ReadId, WriteId
from attnres_passes.rewrite.record import Entry
from attnres_passes.torch_private.state import in_backward

_open: weakref.WeakKeyDictionary[nn.Module, Recording] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Layout:
    """What the statistics of one compiled graph are about. entries: the parts; planned: the read or write of each in
    the plan of the model.
    """

    entries: tuple[Entry, ...]
    planned: tuple[ReadId | WriteId, ...]
    num_probes: int

    @property
    def streams(self) -> frozenset[int]:
        """The streams of the plan that are in the graph."""
        return frozenset(about.stream for about in self.planned)


@dataclass
class _GraphTotal:
    """What one graph has given so far. sums: of its statistics; norms: of its gradients, in ``backwards`` passes."""

    sums: Tensor | None = None
    norms: Tensor | None = None
    backwards: int = 0


@dataclass
class _EntryTotal:
    """The statistics of one read or write, over all graphs."""

    values: list[float] = field(default_factory=list)
    norm: float = 0.0
    backwards: int = 0


class Recording(Views):
    """What ``depth_weights`` gives. Reading it waits for the device; nothing else does.

    every: of the forward passes of the model, one in so many is recorded.
    """

    def __init__(self, name: str, plan: Plan, every: int) -> None:
        self.name, self.plan, self.every = name, plan, every
        self.is_open = True
        self._totals: dict[Layout, _GraphTotal] = {}
        self._passes = 0
        self._seen: frozenset[int] = frozenset()
        self._sublayers: dict[ReadId | WriteId, Sublayer] = {}

    # Called by compiled graphs

    def accepts(self, layout: Layout) -> bool:
        """Whether this call of a graph is recorded. What is computed again in a backward pass is, if it was before.

        A graph with a stream that has been seen in this forward pass of the model begins another one.
        """
        if not in_backward():
            if self._passes == 0 or not self._seen.isdisjoint(layout.streams):
                self._passes += 1
                self._seen = frozenset()
            self._seen |= layout.streams
        return (self._passes - 1) % self.every == 0

    def add(self, layout: Layout, statistics: Tensor) -> None:
        """Add the statistics of one call. What activation checkpointing computes again was counted before.

        Args:
            layout: of the graph that was called.
            statistics: ``[entries]``, sums over tokens.
        """
        if in_backward():
            return
        total = self._total(layout)
        total.sums = _added(total.sums, statistics)

    def probes(self, layout: Layout, device: torch.device) -> Tensor:
        """A fresh vector of probes; what a backward pass gives them is added to the recording.

        Args:
            layout: of the graph that is called.
            device: that it runs on.

        Returns:
            ``[num_probes]``, zeros that require gradients.
        """
        probes = torch.zeros(layout.num_probes, device=device, requires_grad=True)
        # The graph of autograd keeps the probes for as long as a backward pass may come, and nothing else does.
        reference = weakref.ref(self)

        def take(leaf: Tensor) -> None:
            recording = reference()
            if recording is not None and leaf.grad is not None:
                recording._add_gradients(layout, leaf.grad)
            leaf.grad = None

        probes.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
        return probes

    def needs_sublayers(self, layout: Layout) -> bool:
        return any(about not in self._sublayers for about in layout.planned)

    def note_sublayers(self, found: Mapping[ReadId | WriteId, Sublayer]) -> None:
        self._sublayers.update(found)

    def _total(self, layout: Layout) -> _GraphTotal:
        return self._totals.setdefault(layout, _GraphTotal())

    def _add_gradients(self, layout: Layout, squares: Tensor) -> None:
        if not self.is_open:
            return
        total = self._total(layout)
        total.norms = _added(total.norms, squares.sqrt())
        total.backwards += 1

    # Called by people

    @property
    def reads(self) -> tuple[RecordedRead, ...]:
        """One entry per read with two sources or more, up to now."""
        return self.result().reads

    @property
    def writes(self) -> tuple[RecordedWrite, ...]:
        """One entry per write, up to now."""
        return self.result().writes

    def result(self) -> DepthWeights:
        """All that was recorded up to now, frozen. Raises RecordingError if that is nothing."""
        sums = self._sums()
        if not sums:
            raise RecordingError(
                f"nothing has been recorded of {self.name} yet; call the model inside the with statement, compiled "
                'with backend="attnres".'
            )
        return DepthWeights(
            self.name,
            tuple(stream.name for stream in self.plan.streams),
            tuple(self._read(read, sums[read]) for read in sorted(one for one in sums if isinstance(one, ReadId))),
            tuple(self._write(write, sums[write]) for write in sorted(one for one in sums if isinstance(one, WriteId))),
        )

    def _sums(self) -> dict[ReadId | WriteId, _EntryTotal]:
        sums: dict[ReadId | WriteId, _EntryTotal] = {}
        for layout, total in self._totals.items():
            values = None if total.sums is None else total.sums.tolist()
            norms = None if total.norms is None else total.norms.tolist()
            for entry, about in zip(layout.entries, layout.planned, strict=True):
                found = sums.setdefault(about, _EntryTotal([0.0] * entry.size))
                if values is not None:
                    part = values[entry.start : entry.start + entry.size]
                    found.values = [old + new for old, new in zip(found.values, part, strict=True)]
                if norms is not None and entry.probe is not None:
                    found.norm += norms[entry.probe]
                    found.backwards += total.backwards
        return sums

    def _read(self, about: ReadId, found: _EntryTotal) -> RecordedRead:
        stream = self.plan.streams[about.stream]
        read = stream.reads[about.index]
        *weights, entropy, square, tokens = found.values
        assert len(weights) == len(found.values) - READ_EXTRA == read.num_sources
        return RecordedRead(
            stream=stream.name,
            module=f"{read.module} ({read.argument})" if read.argument else read.module,
            source=short_source(read.source),
            before=self._sublayers.get(about, Sublayer.UNKNOWN),
            state=read.state,
            block=read.block,
            is_open=read.state % stream.block_size != 0,
            tokens=round(tokens),
            weights=tuple(_mean(weight, tokens) for weight in weights),
            entropy=_mean(entropy, tokens),
            magnitude=math.sqrt(_mean(square, tokens)),
        )

    def _write(self, about: WriteId, found: _EntryTotal) -> RecordedWrite:
        stream = self.plan.streams[about.stream]
        write = stream.writes[about.index]
        own, block, tokens = found.values
        return RecordedWrite(
            stream=stream.name,
            module=write.module,
            source=short_source(write.source),
            sublayer=self._sublayers.get(about, Sublayer.UNKNOWN),
            index=about.index + 1,
            block=write.block,
            tokens=round(tokens),
            output_magnitude=math.sqrt(_mean(own, tokens)),
            block_magnitude=math.sqrt(_mean(block, tokens)),
            gradient_norm=found.norm / found.backwards if found.backwards else None,
            backwards=found.backwards,
        )


def _mean(total: float, tokens: float) -> float:
    return total / tokens if tokens else math.nan


def _added(total: Tensor | None, given: Tensor) -> Tensor:
    """``total + given`` in fp64 where the device has it, in place and without waiting for the device."""
    with torch.inference_mode(False), torch.no_grad():
        if total is None:
            dtype = torch.float32 if given.device.type == "mps" else torch.float64
            total = torch.zeros(given.shape, dtype=dtype, device=given.device)
        return total.add_(given)


def open_recording(parameters: AttnResParameters) -> Recording | None:
    """The recording of the model with these parameters, while one is open."""
    return _open.get(parameters) if _open else None


@contextlib.contextmanager
def depth_weights(model: nn.Module, *, every: int = 1) -> Iterator[Recording]:
    """Record what the depth attentions of ``model`` do while it runs inside the ``with`` statement.

    The model has to be prepared, and compiled with this backend, before or inside. Its outputs and gradients stay what
    they are. The first call inside compiles each graph once more, with the statistics in it; after the ``with`` the
    graphs from before run again. Gradient norms are recorded of calls of ``backward`` inside.

    Args:
        model: a prepared model, compiled or not, or a module around one (``torch.compile``, DDP).
        every: record one in so many forward passes.

    Yields:
        The Recording, which can be read inside and after. Its memory is bounded by reads times sources.

    Raises:
        NotPreparedError, ConfigError for ``every`` below 1, RecordingError if the model is being recorded already.
    """
    if every < 1:
        raise ConfigError(f"every={every} records nothing; pass 1 to record every forward pass, or a larger number.")
    owner, parameters = _prepared(model)
    if parameters in _open:
        raise RecordingError(
            f"{type(owner).__name__} is being recorded already; leave that with statement first, or use its recording."
        )
    recording = Recording(type(owner).__name__, parameters.plan, every)
    _open[parameters] = recording
    try:
        yield recording
    finally:
        recording.is_open = False
        _open.pop(parameters, None)


def _prepared(model: nn.Module) -> tuple[nn.Module, AttnResParameters]:
    """The one prepared model that ``model`` is, or that is inside it. Raises NotPreparedError, RecordingError."""
    model = unwrapped(model)
    own = parameters_of(model)
    if own is not None:
        return model, own
    found = [part for _, part in prepared_within(model)]
    if not found:
        raise NotPreparedError(
            f"{type(model).__name__} has no depth attentions to record; call attnres_compile.prepare(model, ..) and "
            'model.compile(backend="attnres") first.'
        )
    if len(found) > 1:
        raise RecordingError(
            f"{type(model).__name__} holds {len(found)} prepared models; pass the one to record to depth_weights."
        )
    parameters = parameters_of(found[0])
    assert parameters is not None
    return found[0], parameters
