"""What the record says of compiled kernels, as text: a line per shape, and a line per launch of one shape."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from tabulate import tabulate

from .summary import MOST_PER_BYTE, Comparison, candidates, comparison
from .time_model import H100, H200, bounds

PARTS = ("forward", "backward")
SHOWN = (4096, 8)
"""Width and sources of the shape whose launches are listed: that of which all configurations are compiled."""


def summary_lines(record: Mapping[str, Any]) -> list[str]:
    """Ours beside the best peer, a line per shape and direction; then where it is not as it should be, and why."""
    rows, missed = [], []
    for part in PARTS:
        for cell in record["cells"]:
            found = comparison(cell, part, record["code"])
            if found is not None:
                rows.append(_row(cell, part, found))
                if not found.is_reached:
                    missed.append(f"  {part}, {_shape(cell)}: {found.why()}")
    if not rows:
        return []
    headers = (
        *("shape", "", "ours", "best peer", "bytes", "slots a row", "its", "per byte", "fewest slots of a peer"),
        *("model, us", "its", "held up by"),
    )
    goal = f"bytes at most the best peer's, instructions per byte at most {MOST_PER_BYTE}x"
    told = f"{len(rows) - len(missed)} of {len(rows)} reached: {goal}"
    return [tabulate(rows, headers, disable_numparse=True), told, *missed]


def _row(cell: Mapping[str, Any], part: str, found: Comparison) -> list[str]:
    tokens = cell["tokens"]
    return [
        _shape(cell),
        part,
        found.ours.name.removeprefix("kernels, "),
        found.peer.name,
        f"{found.bytes_ratio:.3f}x",
        f"{found.ours.slots / tokens:.0f}",
        f"{found.peer.slots / tokens:.0f}",
        f"{found.per_byte_ratio:.2f}x",
        f"{found.fewest.name} {found.fewest.slots / tokens:.0f}",
        f"{1e6 * found.ours.seconds():.0f}",
        f"{1e6 * found.peer.seconds():.0f}",
        found.ours.longest().holds_up,
    ]


def launch_lines(record: Mapping[str, Any]) -> list[str]:
    """Every launch of the shape that is shown, with the configuration of the fewest issue slots."""
    cells = [cell for cell in record["cells"] if (cell["width"], cell["sources"]) == SHOWN]
    lines = []
    for cell in cells:
        rows = [row for part in PARTS for row in _launches(cell, part, record["code"])]
        headers = (
            *("", "arm", "kernel", "times", "of", "warps", "instructions", "slots a row", "registers", "spilled"),
            *("shared", "programs", "waits", "H200, us", "H100, us", "held up by"),
        )
        lines += [f"launches of {_shape(cell)}", tabulate(rows, headers, disable_numparse=True)]
    return lines


def _launches(cell: Mapping[str, Any], part: str, codes: Mapping[str, Any]) -> list[list[str]]:
    rows: dict[tuple[str, str], list[list[str]]] = {}
    listed = {arm["name"]: arm for arm in cell["arms"]}
    for arm in candidates(cell, part, codes):
        for (moved, facts), told in zip(arm.launches, listed[arm.name][part], strict=True):
            if facts is None:
                continue
            slots = [codes[x]["issue_slots"] for x in told["code"] if "issue_slots" in codes[x]]
            span = sorted({f"{x / cell['tokens']:.0f}" for x in (facts["issue_slots"], max(slots))}, key=float)
            on_h200, on_h100 = (bounds(moved, facts, gpu) for gpu in (H200, H100))
            row = [
                *(part, arm.name, facts["kernel"], "1", str(len(told["code"])), str(facts["warps"])),
                *(str(facts["instructions"]), "..".join(span), str(facts["registers"]), str(facts["spilled_bytes"])),
                *(str(facts["shared_bytes"]), str(facts["resident_programs"]), _waits(facts)),
                *(f"{1e6 * on_h200.seconds:.0f}", f"{1e6 * on_h100.seconds:.0f}", on_h200.holds_up),
            ]
            rows.setdefault((arm.name, ",".join(told["code"])), []).append(row)
    return [[*same[0][:3], str(len(same)), *same[0][4:]] for same in rows.values()]


def _waits(facts: Mapping[str, Any]) -> str:
    ahead = " ahead" if facts["copies_ahead"] else ""
    return f"{facts['waits']}{ahead}" if prod(facts["grid"]) else "0"


def _shape(cell: Mapping[str, Any]) -> str:
    return f"d {cell['width']}, n {cell['sources']}"
