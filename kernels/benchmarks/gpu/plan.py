"""The plan: every cell that is worth measuring on a GPU, in the order of its worth.

1. checks      every kernel at real sizes against the definition in fp64, and two runs bit for bit; then the GPU tests
2. warm-ups    what is timed later, run once, so that its code is in the caches on disk; beside the checks, on all cores
3. blocks      our kernels against the copy bandwidth, on the shapes of the goals
4. model       training step, prefill and decode step of the first model
5. peers       ours against other people's kernels, on shapes that are far from one another
6. models      the other models
7. more peers  the shapes that are left

Within a class, shapes are in an order in which each is the farthest from those before, so that whatever ends the run
leaves a sample of all of them. Seconds are estimates with code that is compiled already; none was measured before the
first run on a GPU, which corrects them as it goes (``budget``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..against_peers.arms.arm import KERNELS
from ..against_peers.work import BLOCK, DIRECTIONS, FORWARD, LEVELS, OP, TRAINING
from ..goals.project_goals import DTYPE, INPUT, MODELS, SOURCES, TOKENS, WIDTHS

CHECKS, WARM_UPS, BLOCKS, MODEL = "checks", "warm-ups", "blocks", "model"
PEERS, OTHER_MODELS, MORE_PEERS = "peers", "models", "more peers"
CLASSES = (CHECKS, WARM_UPS, BLOCKS, MODEL, PEERS, OTHER_MODELS, MORE_PEERS)

READS, ROUNDS, COPIED = 6, 10, 1 << 30
FIRST_PEERS = 6
"""Shapes of a block that are compared with peers before the other models are measured."""
PEER_ARMS = ("fla-core", "liger", "flash-attn-res", "fast-attnres")
WORKLOADS = ("training", "prefill", "decode")
_COLD, _COLD_PEERS = 3, 6
"""Times what a cell takes with compiled code, its warm-up takes; peers tune themselves, by up to 58 choices a read."""
ODD = ((1000, 7168, 2), (17, 33, 3), (1, 2048, 2))
"""Numbers of tokens and widths that no tile divides."""
FEW = 8
"""Up to so many tokens are checked in fp32: in bf16 the rounding of each token shows in the gradients of parameters."""
JSON = "{json}"
"""Stands for the file of its record in the words of a command."""

Place = tuple[int, int, int]
"""Tokens, width and completed blocks."""


@dataclass(frozen=True)
class Cell:
    """One piece of work that is worth a place in the record."""

    name: str
    """Unique; the record knows it by this."""
    group: str
    """A name of CLASSES."""
    work: dict[str, Any] = field(repr=False)
    """What a worker is told (``work``)."""
    seconds: float
    """That it is expected to take."""
    limit: float
    """Seconds after which it is killed: room for compilation that was not done before."""
    gigabytes: float = 1.0
    """Of the GPU's memory, at most; counts where cells run beside each other."""

    @property
    def is_timed(self) -> bool:
        """Whether it measures time, so that nothing may run beside it."""
        return self.group not in (CHECKS, WARM_UPS)


def make_plan(groups: Collection[str] = CLASSES, known: Collection[str] = (), device: str = "cuda") -> list[Cell]:
    """All cells, in order, with warm-ups of those that are still to be timed.

    Args:
        groups: classes that are wanted.
        known: names of cells that need no measurement.
        device: of every cell.
    """
    timed = [cell for cell in _timed(device) if cell.group in groups]
    checks = _checks(device) if CHECKS in groups else ()
    return [*checks, *_warm_ups([cell for cell in timed if cell.name not in known]), *timed]


def _checks(device: str) -> Iterator[Cell]:
    for place in (*spread(), *ODD):
        for level in LEVELS:
            yield _check(level, TRAINING, place, device)
    for place in itertools.islice((place for place in spread() if place[2] == max(SOURCES)), 2):
        yield _check(BLOCK, FORWARD, place, device)  # without a backward, reads make the logits of more sources
    words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/kernels"]
    yield Cell("tests of the kernels on a GPU", CHECKS, {"do": "command", "words": words}, 60, 240, 20)


def _check(level: str, direction: str, place: Place, device: str) -> Cell:
    shape = _shape(level, place) | ({"dtype": "float32"} if place[0] <= FEW else {})
    work = {"do": "check", "shape": shape, "direction": direction, "device": device}
    return Cell(
        f"check {_title(level, direction, place)}", CHECKS, work, 20 + _weight(place), 180, 6 + _gigabytes(place)
    )


def _timed(device: str) -> Iterator[Cell]:
    places = spread()
    first, later = places[:FIRST_PEERS], places[FIRST_PEERS:]
    both = list(DIRECTIONS)
    yield from (_kernels(BLOCKS, BLOCK, way, place, device) for place in places for way in both)
    yield from _of_model(MODEL, MODELS[0], device)
    yield from (_kernels(PEERS, BLOCK, way, place, device) for place in first for way in both)
    yield from (_kernels(PEERS, OP, way, place, device) for place in first for way in both)
    for name in MODELS[1:]:
        yield from _of_model(OTHER_MODELS, name, device)
    yield from (
        _kernels(MORE_PEERS, level, way, place, device) for place in later for level in (BLOCK, OP) for way in both
    )


def _kernels(group: str, level: str, direction: str, place: Place, device: str) -> Cell:
    """A cell of ``kernels.benchmarks peers``: our kernels, and in the classes of peers theirs too."""
    of_peers = group != BLOCKS
    names = [KERNELS, *(PEER_ARMS if of_peers else ())]
    shape = _shape(level, place)
    job: dict[str, Any] = {name: [value] for name, value in shape.items()} | {"direction": [direction]}
    job |= {"arms": names, "peers": of_peers, "rounds": ROUNDS, "device": device, "copied": COPIED}
    seconds = (5 if direction == FORWARD else 8) * (2 if of_peers else 1) + _weight(place)
    title = f"{_title(level, direction, place)}{', with peers' if of_peers else ''}"
    return Cell(title, group, {"do": "kernels", "job": job}, seconds, 3 * seconds + 30, _gigabytes(place))


def _of_model(group: str, model: str, device: str) -> Iterator[Cell]:
    size = 1 + MODELS.index(model)
    batch, tokens = map(str, INPUT)
    options = ["--device", device, "--dtype", DTYPE, "--batch", batch, "--seq", tokens, "--quiet"]
    for workload in WORKLOADS:
        words = ["-m", "attnres_compile", "bench", "model", model, *options, "--workload", workload, "--json", JSON]
        seconds = 20 + 10 * size
        work = {"do": "command", "words": words}
        yield Cell(f"{model}: {workload}", group, work, seconds, 3 * seconds, 20 * size)


def _warm_ups(timed: Sequence[Cell]) -> Iterator[Cell]:
    """One for each cell that is timed, in the same order."""
    for cell in timed:
        changed = {"do": "warm-up"} if "job" in cell.work else {"words": [*cell.work["words"], "--rounds", "1"]}
        seconds = (_COLD_PEERS if cell.group in (PEERS, MORE_PEERS) else _COLD) * cell.seconds
        yield Cell(f"warm-up of {cell.name}", WARM_UPS, cell.work | changed, seconds, 4 * seconds, cell.gigabytes)


def _shape(level: str, place: Place) -> dict[str, Any]:
    tokens, width, sources = place
    reads = READS if level == BLOCK else 1
    return {"level": level, "tokens": tokens, "width": width, "sources": sources, "reads": reads, "dtype": DTYPE}


def _title(level: str, direction: str, place: Place) -> str:
    return f"{level}, {direction}: T {place[0]}, d {place[1]}, n {place[2]}"


def _gigabytes(place: Place) -> float:
    """Sources, branches, outputs and their gradients, and as much again for intermediates."""
    tokens, width, sources = place
    return 2 + 2 * 2 * (sources + 2 * READS) * 2 * tokens * width / 1e9


def _weight(place: Place) -> float:
    """Seconds that the reference and the samples of a shape take, beyond those of a small one."""
    tokens, width, sources = place
    return 5 * tokens * width * (sources + 1) / (32768 * 7168 * 9)


def spread() -> list[Place]:
    """The shapes of the goals: one in the middle, then each the farthest from those before it."""
    left: list[Place] = list(itertools.product(TOKENS, WIDTHS, SOURCES))
    taken = [left.pop(4)]
    while left:
        farthest = max(left, key=lambda place: min(_distance(place, other) for other in taken))
        left.remove(farthest)
        taken.append(farthest)
    return taken


def _distance(one: Place, other: Place) -> float:
    return sum(abs(math.log(a / b)) for a, b in zip(one, other, strict=True))
