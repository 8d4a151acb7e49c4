"""``python -m kernels.benchmarks offline``: every kernel of a grid of shapes, compiled for GPUs that are not there.

    widths, sources, reads --> kernels_of_block --> distinct kernels --> processes that compile --> record

Most shapes share their kernels, as widths are arguments of a kernel: one with the same text, constants and tile is
compiled once per target.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from tabulate import tabulate

from attnres_compile.progress import each
from attnres_compile.report.comparison import MeasureError
from attnres_compile.report.records import check_record, describe_environment, record_head

from .catalogue import Entry, kernels_of_block
from .compilation import TARGETS, compile_offline
from .occupancy import MULTIPROCESSORS, SHARED_MEMORY, resident_warps

SCHEMA_VERSION = 1
KIND = "bench offline"
COMMAND = "python -m kernels.benchmarks offline"

WIDTHS = (768, 1024, 2048, 4096, 5120, 7168)
SOURCES = tuple(range(1, 10))
READS = tuple(range(1, 9))
WORKERS = 2


@dataclass(frozen=True)
class Kernel:
    """One distinct kernel and the shapes it is of: each number is that of some shape, and not all are combined."""

    entry: Entry
    digest: str
    widths: tuple[int, ...]
    sources: tuple[int, ...]
    reads: tuple[int, ...]


def distinct_kernels(
    widths: Sequence[int] = WIDTHS, sources: Sequence[int] = SOURCES, reads: Sequence[int] = READS
) -> list[Kernel]:
    """The kernels of all blocks of these shapes: logits for as many reads as such blocks have in all.

    Args:
        widths: of the stream.
        sources: completed blocks.
        reads: of a block.
    """
    found: dict[str, tuple[Entry, set[tuple[int, int, int]]]] = {}
    for shape in product(widths, sources, reads):
        width, n, s = shape
        for entry in kernels_of_block(n, s, width, later_reads=n * s):
            found.setdefault(digest_of(entry), (entry, set()))[1].add(shape)
    return [
        Kernel(entry, digest, *(tuple(sorted(set(numbers))) for numbers in zip(*shapes, strict=True)))
        for digest, (entry, shapes) in found.items()
    ]


def digest_of(entry: Entry) -> str:
    """What tells kernels apart: kind, text, constants and tile."""
    on_targets = [entry.constants_on(memory) for memory in SHARED_MEMORY.values()]
    return hashlib.sha256(repr((entry, on_targets)).encode()).hexdigest()[:16]


def compile_kernels(
    targets: Sequence[str] = tuple(TARGETS),
    widths: Sequence[int] = WIDTHS,
    command: Sequence[str] = (),
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compile the kernels of these widths for these targets, and return the record for JSON.

    A kernel that does not compile has an ``error`` in place of its facts.

    Args:
        targets: names of ``TARGETS``.
        widths: of the stream.
        command: the words of the command line, for the record.
        earlier: a record of the same Triton, whose facts are taken over for kernels that have not changed since.

    Raises:
        MeasureError: no or an unknown target, no or a non-positive width, or an earlier record of another Triton.
    """
    if unknown := set(targets) - set(TARGETS):
        raise MeasureError(f"{', '.join(sorted(unknown))} is no target: pass some of {', '.join(TARGETS)}")
    if not targets or not widths or min(widths) < 1:
        raise MeasureError("there is nothing to compile: pass at least 1 target, and widths of at least 1")
    kernels = distinct_kernels(sorted(set(widths)))
    known = {} if earlier is None else _facts_of(earlier)
    missing = [(kernel, target) for target in targets for kernel in kernels if (kernel.digest, target) not in known]
    with _no_interpreter(), ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        compiled = pool.map(_compile, [(kernel.entry, target) for kernel, target in missing])
        of_jobs = zip(each(missing, "compiling a kernel"), compiled, strict=True)
        known |= {(kernel.digest, target): facts for (kernel, target), facts in of_jobs}
    return {
        **record_head(KIND, SCHEMA_VERSION, command, "cpu"),
        "grid": {
            "targets": list(targets),
            "widths": sorted(set(widths)),
            "sources": list(SOURCES),
            "reads": list(READS),
        },
        "kernels": [
            _described(kernel) | {"compiled": {target: known[kernel.digest, target] for target in targets}}
            for kernel in kernels
        ],
    }


def _facts_of(earlier: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Facts by digest and target. Raises MeasureError if the record was made with another Triton."""
    _check_kind(earlier)
    then, now = (of["versions"]["triton"] for of in (earlier["environment"], describe_environment("cpu")))
    if then != now:
        raise MeasureError(f"the earlier record was made with Triton {then}, and here is {now}: leave --earlier out")
    return {
        (kernel["digest"], target): facts
        for kernel in earlier["kernels"]
        for target, facts in kernel["compiled"].items()
    }


def _described(kernel: Kernel) -> dict[str, Any]:
    tile = kernel.entry.tile
    return {
        "kind": kernel.entry.kind,
        "digest": kernel.digest,
        "tile": [tile.rows, tile.columns, tile.warps],
        "widths": list(kernel.widths),
        "sources": list(kernel.sources),
        "reads": list(kernel.reads),
    }


def _compile(job: tuple[Entry, str]) -> dict[str, Any]:
    entry, target = job
    tile = (entry.tile.rows, entry.tile.columns, entry.tile.warps)
    try:
        compiled = compile_offline(entry.text, entry.constants_on(SHARED_MEMORY[target]), tile, target)
    except Exception as error:  # of Triton or its assemblers, of any class
        return {"error": f"{type(error).__name__}: {error}"}
    return {**asdict(compiled.facts), "shared_bytes": compiled.shared_bytes}


@contextmanager
def _no_interpreter() -> Iterator[None]:
    """Processes that are started meanwhile compile kernels, even if this one interprets them."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def failures(record: dict[str, Any]) -> list[str]:
    """Kind, target and error of each kernel that did not compile."""
    return [f"{kind} for {target}: {facts['error']}" for kind, target, facts in _results(record) if "error" in facts]


def _results(record: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for kernel in record["kernels"]:
        for target, facts in kernel["compiled"].items():
            yield kernel["kind"], target, facts


def record_text(record: dict[str, Any]) -> str:
    """The record as JSON, a line per kernel."""
    head = json.dumps(record | {"kernels": []}, indent=2)
    kernels = ",\n    ".join(json.dumps(kernel) for kernel in record["kernels"])
    return head.replace('"kernels": []', f'"kernels": [\n    {kernels}\n  ]')


def _check_kind(record: dict[str, Any]) -> None:
    check_record(record, KIND, SCHEMA_VERSION, command=COMMAND, remedy="compile again")


def offline_table(record: dict[str, Any]) -> str:
    """Per kind and target how many kernels compiled, the most that one of them needs, and the fewest warps that a
    multiprocessor holds of one of them; then each failure.

    Raises MeasureError for a record of another kind or version.
    """
    _check_kind(record)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kernel in record["kernels"]:
        for target, facts in kernel["compiled"].items():
            resident = {"resident_warps": _resident_warps(target, kernel["tile"][2], facts)}
            groups.setdefault((kernel["kind"], target), []).append(facts | resident)
    groups = dict(sorted(groups.items(), key=lambda item: _place(record, *item[0])))
    rows = [_row(kind, target, facts) for (kind, target), facts in groups.items()]
    environment, grid = record["environment"], record["grid"]
    widths = ", ".join(map(str, grid["widths"]))
    heading = (
        f"{len(record['kernels'])} kernels for d in {widths}, n in {_span(grid['sources'])}, "
        f"S in {_span(grid['reads'])}; triton {environment['versions']['triton']}, {environment['date'][:10]}"
    )
    headers = (
        "kernel",
        "target",
        "compiled",
        "registers",
        "spilled bytes",
        "narrowest load [bits]",
        "shared [bytes]",
        "resident warps",
    )
    return "\n".join([heading, tabulate(rows, headers, disable_numparse=True), *failures(record)])


def _span(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}..{max(numbers)}"


def _place(record: dict[str, Any], kind: str, target: str) -> tuple[int, int]:
    kinds = list(dict.fromkeys(kernel["kind"] for kernel in record["kernels"]))
    return kinds.index(kind), record["grid"]["targets"].index(target)


def _row(kind: str, target: str, facts: Sequence[dict[str, Any]]) -> list[object]:
    compiled = [of_kernel for of_kernel in facts if "error" not in of_kernel]

    def over(function: Any, name: str) -> object:
        numbers: Iterable[int] = (of_kernel[name] for of_kernel in compiled if of_kernel[name] is not None)
        return function(numbers, default="")

    return [
        kind,
        target,
        f"{len(compiled)} of {len(facts)}",
        over(max, "registers"),
        over(max, "spilled_bytes"),
        over(min, "narrowest_load"),
        over(max, "shared_bytes"),
        over(min, "resident_warps"),
    ]


def _resident_warps(target: str, warps: int, facts: dict[str, Any]) -> int | None:
    """None for a kernel that did not compile, and for targets of which the limits are not known here."""
    if "error" in facts or target not in MULTIPROCESSORS:
        return None
    return resident_warps(target, warps, facts["registers"], facts["shared_bytes"])
