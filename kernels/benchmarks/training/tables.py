"""The tables of docs/results.md, from the record alone: means, spreads, and differences paired by seed."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from attnres_compile.report.comparison import MeasureError

from .grid import PLAIN, RATES, ROWS, SEEDS, SIZES, Row, Size, quality_run
from .order import RETROFITS, best_rate, final_runs, loss_of, pretraining, retrofit_runs, runs_at_all_rates
from .record import Line, Record, read_lines


def kept(path: Path) -> Record:
    """A record as it stands, whatever the text of this machine is.

    Args:
        path: of the record.

    Raises:
        MeasureError: its runs are of several texts, or under other settings than those of the grid.
    """
    texts = {line["settings"]["text"] for line in read_lines(path).values()}
    if len(texts) > 1:
        raise MeasureError(
            f"the runs of {path} are of {len(texts)} texts, {', '.join(sorted(texts))}: keep one of them"
        )
    return Record(path, next(iter(texts), ""))


@dataclass(frozen=True)
class Pair:
    """Validation losses of a run and of the plain one with the same size and seed."""

    size: str
    seed: int
    plain: float
    other: float

    @property
    def difference(self) -> float:
        """Below zero where the row is better than plain; infinite where a side diverged."""
        return self.other - self.plain


def sign_flip_p(differences: Sequence[float]) -> float:
    """How likely a mean is to be as far from zero, if each difference could as well have the other sign.

    All of the ``2 ** n`` signs are tried, so that nothing is assumed of the distribution; the least value is
    ``2 / 2 ** n``.

    Args:
        differences: of pairs.
    """
    found = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = (abs(sum(map(math.prod, zip(differences, signs, strict=True)))) for signs in flips)
    return sum(one >= found * (1 - 1e-12) for one in sums) / 2.0 ** len(differences)


def pairs(record: Record, row: Row) -> list[Pair]:
    """The pairs of a row with the plain model, of all sizes; only those of which both runs are there.

    Args:
        record: of the runs.
        row: other than the plain one.
    """
    found = []
    for size in SIZES.values():
        plain = {run.seed: loss_of(record.of(run)) for run in final_runs(size, ROWS[PLAIN], record.of)}
        for run in final_runs(size, row, record.of):
            losses = plain.get(run.seed, math.nan), loss_of(record.of(run))
            if not any(map(math.isnan, losses)):
                found.append(Pair(size.name, run.seed, *losses))
    return found


_SIGNIFICANT = 0.05
_DIFFERENCES = ("pairs", "loss less plain's, mean", "standard deviation", "least and largest", "lower in", "p")


def outcome_table(record: Record) -> str:
    """A line for each row, over all sizes."""
    lines = []
    for row in ROWS.values():
        if row.name == PLAIN:
            continue
        found = pairs(record, row)
        if found:
            lines.append([row.name, *_differences([pair.difference for pair in found])])
    return _markdown(lines, ["row", *_DIFFERENCES]) if lines else "No pair of runs yet.\n"


def _differences(found: Sequence[float]) -> list[str]:
    lower = f"{sum(one < 0 for one in found)} of {len(found)}"
    if any(map(math.isinf, found)):
        return [str(len(found)), "a run diverged", "", "", lower, ""]
    spread = f"{statistics.stdev(found):.4f}" if len(found) > 1 else ""
    ends = f"{min(found):+.4f} to {max(found):+.4f}"
    return [str(len(found)), f"{statistics.mean(found):+.4f}", spread, ends, lower, f"{sign_flip_p(found):.3f}"]


def verdict(record: Record) -> str:
    """What the pairs say of the first AttnRes rows, in words."""
    texts = []
    for row in ROWS.values():
        found = [pair.difference for pair in pairs(record, row)]
        if row.options is None or row.tier > 2 or not found:
            continue
        planned = len(SEEDS) * sum(size.on == "cpu" for size in SIZES.values())
        few = "" if len(found) >= planned else f" (of {planned} planned)"
        if any(map(math.isinf, found)):
            texts.append(f"- **{row.name}**: a run diverged.")
            continue
        mean, p = statistics.mean(found), sign_flip_p(found)
        said = f"the validation loss is {'lower' if mean < 0 else 'HIGHER'} than the plain model's at equal tokens"
        if 2 / 2 ** len(found) > _SIGNIFICANT:
            said = "too few pairs to tell"
        elif p > _SIGNIFICANT:
            said = "no difference is seen"
        texts.append(f"- **{row.name}**: {said}: {mean:+.4f} nats a byte in {len(found)} pairs{few}, p = {p:.3f}.")
    return "\n".join(texts) + "\n" if texts else "No pair of runs yet, so nothing is seen either way.\n"


def size_table(record: Record) -> str:
    """A line for each size and row."""
    lines = []
    for size in SIZES.values():
        for row in ROWS.values():
            made = [line for run in final_runs(size, row, record.of) if (line := record.of(run)) is not None]
            if made:
                lines.append(_size_line(record, size, row, made))
    heads = ["size", "row", "rate", "tokens", "FLOPs", "processor s a step", "runs"]
    heads += ["validation loss", "less plain's, by seed"]
    return _markdown(lines, heads) if lines else "No run yet.\n"


def _size_line(record: Record, size: Size, row: Row, made: Sequence[Line]) -> list[str]:
    steps = made[0]["settings"]["steps"]
    tokens = steps * size.batch * size.length
    seconds = statistics.median(_seconds(line) for line in made)
    losses = [loss_of(line) for line in made]
    less = {pair.seed: pair.difference for pair in pairs(record, row) if pair.size == size.name}
    by_seed = "" if row.name == PLAIN else ", ".join(f"{less[seed]:+.4f}" for seed in sorted(less))
    return [
        size.name,
        row.name,
        f"{made[0]['rate']:g}{_edge(made[0]['rate'])}",
        f"{tokens:,}",
        _over(made[0], *filter(None, map(record.of, final_runs(size, ROWS[PLAIN], record.of)))),
        f"{seconds:.3f}",
        str(len(made)),
        _spread(losses),
        by_seed,
    ]


def _seconds(line: Line) -> float:
    """Of the processor, a step; not a number for a run that diverged."""
    return (
        float(line["processor_seconds"]) / (line["settings"]["steps"] - 1) if "processor_seconds" in line else math.nan
    )


def _over(line: Line, *plain: Line) -> str:
    """FLOPs of a run over those of the plain runs of its size, which all have as many."""
    if not plain or not line.get("flops") or not plain[0].get("flops"):
        return ""
    whole, of_plain = (one["flops"] * one["settings"]["steps"] for one in (line, plain[0]))
    return f"{whole / of_plain:.3f}"


def _spread(losses: Sequence[float]) -> str:
    if any(map(math.isinf, losses)):
        return "a run diverged"
    return f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else f"{losses[0]:.4f}"


def _edge(rate: float) -> str:
    return "*" if rate in (min(RATES), max(RATES)) else ""


def rate_table(record: Record) -> str:
    """A line for each size and each row with a sweep of its own, or at all rates."""
    lines = []
    for size in SIZES.values():
        for row in ROWS.values():
            if row.rate_of is not None and not runs_at_all_rates(size, row):
                continue
            best = best_rate(size, row, record.of)
            losses = {rate: _losses(record, size, row, rate) for rate in RATES}
            if any(losses.values()):
                lines.append([size.name, row.name, *(_swept(losses[rate], rate == best) for rate in RATES)])
    return _markdown(lines, ["size", "row", *(f"rate {rate:g}" for rate in RATES)]) if lines else "No run yet.\n"


def all_rates_table(record: Record) -> str:
    """A line for each row that is trained with every seed at every rate: pairs of the same rate and seed."""
    lines = []
    for size in SIZES.values():
        for row in ROWS.values():
            if row.name == PLAIN:
                continue
            found = [
                loss - plain
                for rate in RATES
                for plain, loss in _paired(record, size, row, rate)
                if runs_at_all_rates(size, row)
            ]
            if found:
                # Pairs of one seed at several rates are not independent, so that there is no p of all of them.
                lines.append([size.name, row.name, *_differences(found)[:-1]])
    return _markdown(lines, ["size", "row", *_DIFFERENCES[:-1]]) if lines else "No pair of runs yet.\n"


def _losses(record: Record, size: Size, row: Row, rate: float) -> dict[int, float]:
    """By seed, of the runs that are there."""
    found = {seed: loss_of(record.of(quality_run(size, row, rate, seed))) for seed in SEEDS}
    return {seed: loss for seed, loss in found.items() if not math.isnan(loss)}


def _paired(record: Record, size: Size, row: Row, rate: float) -> list[tuple[float, float]]:
    """Losses of the plain model and of a row, by seed."""
    plain, other = (_losses(record, size, one, rate) for one in (ROWS[PLAIN], row))
    return [(plain[seed], other[seed]) for seed in plain if seed in other]


def _swept(losses: dict[int, float], is_best: bool) -> str:
    if not losses:
        return ""
    text = f"{_spread(list(losses.values()))} ({len(losses)})"
    return f"**{text}**" if is_best else text


def retrofit_table(record: Record) -> str:
    """A line for each size and row."""
    lines = []
    runs = list(retrofit_runs(list(SIZES.values()), record.of))
    for size in SIZES.values():
        of_size = [run for run in runs if run.size == size]
        plain = {run.seed: loss_of(record.of(run)) for run in of_size if run.options is None}
        for name in RETROFITS:
            made = [(run, line) for run in of_size if run.row == name and (line := record.of(run)) is not None]
            if not made:
                continue
            losses = {run.seed: loss_of(line) for run, line in made}
            less = [losses[seed] - plain[seed] for seed in losses if not math.isnan(plain[seed])]
            began = [line["begins_at"] - loss_of(record.of(pretraining(run, record.of))) for run, line in made]
            by_seed = "" if made[0][0].options is None else ", ".join(f"{one:+.4f}" for one in less)
            cells = [f"{made[0][0].steps * size.batch * size.length:,}", str(len(made))]
            lines.append(
                [size.name, name, *cells, f"{max(began, key=abs):+.1e}", _spread(list(losses.values())), by_seed]
            )
    heads = ["size", "row", "more tokens", "runs", "loss after the change, less before", "validation loss at the end"]
    return _markdown(lines, [*heads, "less plain's, by seed"]) if lines else "No run yet.\n"


def moved_table(record: Record) -> str:
    """How far outputs moved at each change, the largest of all runs."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for run in retrofit_runs(list(SIZES.values()), record.of):
        line = record.of(run)
        for change, moved in ({} if line is None else line.get("moved", {})).items():
            found.setdefault((run.size.name, run.row, change), []).append((moved["absolute"], moved["relative"]))
    lines = [
        [*names, str(len(values)), *(f"{max(column):.1e}" for column in zip(*values, strict=True))]
        for names, values in found.items()
    ]
    heads = ["size", "row", "change", "runs", "largest difference of a logit", "over their root mean square"]
    return _markdown(lines, heads) if lines else "No run yet.\n"


def surroundings(record: Record) -> str:
    """Device, versions, commits, hours."""
    lines = list(record.lines.values())
    if not lines:
        return "No run yet.\n"
    told = [
        ("runs", [f"{len(lines)}, of {sum(line['table'] == 'quality' for line in lines)} the first table's"]),
        ("device", [f"{_one(line)['device']}, {_one(line)['threads']} thread" for line in lines]),
        ("torch, Python, transformers", [_versions(line) for line in lines]),
        ("compiler behind both", [_one(line)["inner"] for line in lines]),
        ("commits", [line["commit"] for line in lines]),
        ("dates", [_one(line)["date"][:10] for line in lines]),
        ("hours of the clock, of the processor in steps", [_hours(lines)]),
        ("text", [line["settings"]["text"] for line in lines]),
    ]
    return _markdown([[name, _counted(values)] for name, values in told], ["what", "of the record"])


def _one(line: Line) -> dict[str, str]:
    environment: dict[str, str] = line["environment"]
    return environment


def _versions(line: Line) -> str:
    versions = line["environment"]["versions"]
    return f"{versions['torch']}, {line['environment']['python']}, {versions['transformers']}"


def _hours(lines: Sequence[Line]) -> str:
    wall, processor = (
        sum(line.get(name, 0.0) for line in lines) / 3600 for name in ("whole_seconds", "processor_seconds")
    )
    return f"{wall:.2f}, {processor:.2f}"


def _counted(values: Sequence[str]) -> str:
    """Distinct values, with how many runs have each where there are several."""
    distinct = {value: values.count(value) for value in values}
    if len(distinct) == 1:
        return values[0]
    return "; ".join(f"{value} ({count} runs)" for value, count in distinct.items())


def _markdown(lines: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True) + "\n"
