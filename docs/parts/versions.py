"""The part of versions.md: which tests ran under which torch, from the record that `make versions` keeps."""

import json
from typing import Any

from benchmark_records import BENCHMARKS

from parts import part
from parts.layout import table

RECORD = BENCHMARKS / "versions.json"


@part
def tests_by_version() -> str:
    record = json.loads(RECORD.read_text())["torch"]
    torches = sorted(record, key=lambda text: tuple(map(int, text.split("."))))
    folders = sorted({folder for torch in torches for folder in record[torch]["folders"]})
    rows: list[list[object]] = [
        [name, *(record[torch]["versions"][name].partition("+")[0] for torch in torches)]
        for name in ("triton", "transformers")
    ]
    rows += [[folder, *(_cell(record[torch]["folders"].get(folder)) for torch in torches)] for folder in folders]
    return table(rows, ["torch", *torches]) + _failures(record, torches)


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    if "error" in found:
        return str(found["error"])
    counts = [f"{found['passed']} passed"]
    counts += [f"{len(found['failed'])} FAILED"] if found["failed"] else []
    counts += [f"{found['skipped']} skipped"] if found["skipped"] else []
    return ", ".join(counts)


def _failures(record: dict[str, Any], torches: list[str]) -> str:
    lines = [
        f"- torch {torch}: `{name}`"
        for torch in torches
        for found in record[torch]["folders"].values()
        for name in found.get("failed", ())
    ]
    return "\n".join(["", "Failed:", "", *lines, ""]) if lines else ""
