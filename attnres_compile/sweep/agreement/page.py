"""The page about a sweep: outcomes, agreement with the labels by kind and by input, disagreements one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from attnres_compile.sweep.agreement.labels import Labels, ModelLabel, OwnLabel, agrees, read_labels
from attnres_compile.sweep.record import DECIDED, FAULTS, ModelRecord, Outcome, read_records

_INPUTS = {
    "pixel": "images",
    "argument 0": "images",
    "hidden_states": "embeddings",
    "inputs_embeds": "embeddings",
    "input_features": "sound",
    "input_values": "sound",
    "decoder_input_ids": "tokens and decoder tokens",
    "input_ids": "tokens",
}
_REASON_SHOWN = 160


def summary(records: Sequence[ModelRecord]) -> str:
    """How many models had which outcome, and each fault in a line.

    Args:
        records: of a sweep.
    """
    counts = Counter(record.outcome for record in records)
    rows = [[outcome.value, counts[outcome]] for outcome in Outcome if counts[outcome]]
    faults = [f"{record.name}: {record.reason}" for record in records if record.outcome in FAULTS]
    return "\n".join([tabulate(rows, headers=["outcome", "models"]), *(["", *faults] if faults else [])])


def page(path: Path) -> str:
    """The whole of what a file of records says, as Markdown. Raises SweepFileError."""
    records = read_records(path)
    return "\n\n".join(f"## {title}\n\n{make(records)}" for title, make in SECTIONS.items())


def outcomes(records: Sequence[ModelRecord]) -> str:
    """A table: outcomes by library, with versions."""
    libraries = sorted({record.library for record in records})
    counts = Counter((record.library, record.outcome) for record in records)
    rows: list[list[object]] = [
        [outcome.value, *(counts[library, outcome] for library in libraries)]
        for outcome in Outcome
        if any(counts[library, outcome] for library in libraries)
    ]
    versions = {library: _versions(records, library) for library in libraries}
    return _table(rows, ["outcome", *(f"{library} {versions[library]}" for library in libraries)])


def verification(records: Sequence[ModelRecord]) -> str:
    """A sentence: how many of the rewritten models verify passed, and the largest error."""
    verified = [record for record in records if record.outcome in (Outcome.REWRITTEN, Outcome.PARTIAL)]
    wrong = [record for record in records if record.outcome is Outcome.WRONG]
    worst = max((record.verified["max_error"] for record in verified), default=0.0)
    checks = sum(record.verified["checks"] for record in verified)
    return (
        f"`verify` passed {len(verified)} of the {len(verified) + len(wrong)} models of which something is rewritten: "
        f"{checks} checks, largest relative error {worst:.1e}."
    )


def by_kind(records: Sequence[ModelRecord]) -> str:
    """A table: agreement by what the labels say."""
    return _agreement(records, lambda _, label: label.kind, "label")


def by_input(records: Sequence[ModelRecord]) -> str:
    """A table: agreement by what the models were run on."""
    return _agreement(records, lambda record, _: input_of(record), "run on")


def disagreements(records: Sequence[ModelRecord]) -> str:
    """A list: each model that became something else than its label says, with both."""
    lines = [
        f"- `{record.name}` ({label.kind}, {label.writes} writes by {_places(label)}): {_found(record)}"
        for record, label in _labelled(records)
        if not agrees(record, label)
    ]
    return "\n".join(lines) or "None."


def unlabelled(records: Sequence[ModelRecord]) -> str:
    """A list: models that were decided, and a layer of which nobody has read."""
    labels = read_labels()
    found = [record for record in records if record.outcome in DECIDED and labels.of(record) is None]
    lines = [
        f"- `{record.name}`: {record.outcome}, {record.writes} writes ({_unread(record, labels)})" for record in found
    ]
    return "\n".join(lines) or "None."


def by_model(records: Sequence[ModelRecord]) -> str:
    """A list: models whose label does not follow from the classes of their layers, with the reason."""
    labelled = read_labels().models
    found = [record.name for record in records if record.name in labelled]
    return "\n".join(f"- `{name}`: {_own(labelled[name])}" for name in found) or "None."


def not_made(records: Sequence[ModelRecord]) -> str:
    """A list: models that were not counted, with the reason."""
    found = [record for record in records if record.outcome not in DECIDED]
    return "\n".join(f"- `{record.name}`: {_short(record.reason)}" for record in found) or "None."


SECTIONS: dict[str, Callable[[Sequence[ModelRecord]], str]] = {
    "Outcomes": outcomes,
    "Verification": verification,
    "Agreement by label": by_kind,
    "Agreement by input": by_input,
    "Disagreements": disagreements,
    "Labels of single models": by_model,
    "Not labelled": unlabelled,
    "Not counted": not_made,
}


def input_of(record: ModelRecord) -> str:
    """What a model was run on: ``images``, ``tokens``, or several of these."""
    on = record.how.rpartition("on ")[2] if record.library == "transformers" else "pixel"
    kinds: list[str] = []
    for word in on.split(", "):
        kinds.extend(kind for start, kind in _INPUTS.items() if word.startswith(start) and kind not in kinds)
    kinds = [kind for kind in kinds if kind != "tokens" or "tokens and decoder tokens" not in kinds]
    return ", ".join(sorted(kinds)) or "others"


def _labelled(records: Iterable[ModelRecord]) -> list[tuple[ModelRecord, ModelLabel]]:
    labels = read_labels()
    decided = [record for record in records if record.outcome in DECIDED]
    return [(record, label) for record in decided if (label := labels.of(record)) is not None]


def _agreement(records: Sequence[ModelRecord], group: Callable[[ModelRecord, ModelLabel], str], header: str) -> str:
    total, same = Counter[str](), Counter[str]()
    for record, label in _labelled(records):
        total[group(record, label)] += 1
        same[group(record, label)] += agrees(record, label)
    rows: list[list[object]] = [
        [name, count, same[name], _share(same[name], count)] for name, count in total.most_common()
    ]
    everything = sum(total.values())
    rows.append(["all", everything, sum(same.values()), _share(sum(same.values()), everything)])
    return _table(rows, [header, "models", "as labelled", "share"])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _found(record: ModelRecord) -> str:
    if record.outcome is Outcome.DECLINED:
        reasons = ", ".join(f"{reason} ({writes} additions, {at})" for reason, writes, at in record.declined[:3])
        return f"declined: {reasons or 'no addition was found'}"
    if not record.streams:
        return f"{record.outcome}: {_short(record.reason)}"
    streams = "; ".join(f"{one.name} with {one.writes}" for one in record.streams[:6])
    more = f" and {len(record.streams) - 6} more" if len(record.streams) > 6 else ""
    why = f"; {_short(record.reason)}" if record.outcome in (Outcome.WRONG, Outcome.REFUSED) else ""
    return f"{record.outcome}, {record.writes} writes in {len(record.streams)} streams: {streams}{more}{why}"


def _own(label: OwnLabel) -> str:
    return f"{label.writes} writes{' in pieces' if label.partial else ''}; {label.why}"


def _places(label: ModelLabel) -> str:
    return ", ".join(label.at[:2]) + (", .." if len(label.at) > 2 else "")


def _unread(record: ModelRecord, labels: Labels) -> str:
    names = [name.rpartition(".")[2] for name in record.layers if name not in labels.layers]
    return ", ".join(names[:3]) or "no list of layers"


def _short(text: str) -> str:
    first = text.partition(";")[0]
    return first if len(first) <= _REASON_SHOWN else first[:_REASON_SHOWN] + ".."


def _versions(records: Sequence[ModelRecord], library: str) -> str:
    found = {record.versions[library] for record in records if record.library == library and record.versions}
    return ", ".join(sorted(found))


def _table(rows: list[list[object]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
