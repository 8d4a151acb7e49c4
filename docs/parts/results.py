"""The parts of results.md: what the record of trained models says."""

from benchmark_records import BENCHMARKS

from kernels.benchmarks.training import tables
from kernels.benchmarks.training.pictures import dynamics_svg
from kernels.benchmarks.training.record import Record
from parts import part, pictures

RECORD = BENCHMARKS / "training.jsonl"


def _kept() -> Record:
    return tables.kept(RECORD)


@part
def verdict() -> str:
    return tables.verdict(_kept())


@part
def outcome() -> str:
    return tables.outcome_table(_kept())


@part
def by_size() -> str:
    return tables.size_table(_kept())


@part
def rates() -> str:
    return tables.rate_table(_kept())


@part
def all_rates() -> str:
    return tables.all_rates_table(_kept())


@part
def retrofit() -> str:
    return tables.retrofit_table(_kept())


@part
def moved() -> str:
    return tables.moved_table(_kept())


@part
def surroundings() -> str:
    return tables.surroundings(_kept())


@part
def shown_pictures() -> str:
    shown = [f"![Plain against AttnRes over depth, {name}](pictures/{name}.svg)" for name in dynamics()]
    return "\n\n".join(shown) + "\n" if shown else "No recording yet.\n"


@pictures
def dynamics() -> dict[str, str]:
    """A picture of each size that was recorded."""
    return dynamics_svg(_kept())
