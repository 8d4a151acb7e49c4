"""Records of what AttnRes adds to each preset: counts them, keeps them in the folder ``overhead``, reads them back.

Counting the largest presets takes minutes, so the pages are made from what was kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from attnres_compile.models.presets import PRESETS
from attnres_compile.progress import each
from attnres_compile.report.table import OverheadReport

OVERHEAD = Path(__file__).resolve().parent / "overhead"
"""The report of each published preset, as ``attnres report PRESET --format json`` counted it."""


def published() -> list[str]:
    return [preset.name for preset in PRESETS.values() if not preset.is_small]


def count_overhead(names: list[str]) -> None:
    """Keep the reports of these presets; each in a process of its own, so that none holds on to memory."""
    OVERHEAD.mkdir(exist_ok=True)
    for name in each(names, "counting a preset"):
        command = [sys.executable, "-m", "attnres_compile", "report", name, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip()}")
        record = json.loads(done.stdout)
        record["environment"] = {"versions": record["environment"]["versions"]}
        (OVERHEAD / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def overhead_records() -> dict[str, OverheadReport]:
    """The records that there are, in the order of the presets."""
    paths = {name: OVERHEAD / f"{name}.json" for name in published()}
    return {
        name: OverheadReport.from_dict(json.loads(path.read_text())) for name, path in paths.items() if path.exists()
    }
