"""The parts of sweep.md: what the record of the sweep says."""

from benchmark_records import BENCHMARKS

from attnres_compile.sweep.agreement import page
from attnres_compile.sweep.record import ModelRecord, read_records
from parts import part

RECORD = BENCHMARKS / "sweep.jsonl"


def _records() -> list[ModelRecord]:
    return read_records(RECORD)


@part
def outcomes() -> str:
    return page.outcomes(_records()) + "\n"


@part
def verification() -> str:
    return page.verification(_records()) + "\n"


@part
def by_kind() -> str:
    return page.by_kind(_records()) + "\n"


@part
def by_input() -> str:
    return page.by_input(_records()) + "\n"


@part
def disagreements() -> str:
    return page.disagreements(_records()) + "\n"


@part
def by_model() -> str:
    return page.by_model(_records()) + "\n"


@part
def unlabelled() -> str:
    return page.unlabelled(_records()) + "\n"


@part
def not_made() -> str:
    return page.not_made(_records()) + "\n"
