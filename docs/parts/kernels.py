"""The parts of kernels.md: the text of one kernel, what the kernels compile to, and what was measured on GPUs.

What was measured comes from all records of the folder ``benchmarks`` that are of a GPU: drop new ones there.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from benchmark_records import BENCHMARKS, gpu_records
from tabulate import tabulate

from attnres_compile.measure.figures import figure_bytes
from attnres_compile.measure.model import KIND as MODEL
from attnres_compile.measure.model_plot import model_figure
from attnres_compile.measure.model_table import model_table
from attnres_kernels.generation.read import read_text
from attnres_kernels.generation.specs import ReadSpec
from kernels.benchmarks.against_peers.cell import MEASURED
from kernels.benchmarks.against_peers.plot import kernels_figure
from kernels.benchmarks.against_peers.run import COMMAND
from kernels.benchmarks.against_peers.run import KIND as KERNELS
from kernels.benchmarks.against_peers.table import cell_title, not_timed, summary_table
from kernels.benchmarks.against_peers.work import LEVELS
from kernels.benchmarks.goals.goal import goals_table
from kernels.benchmarks.goals.merged_records import Record, merged_kernels, merged_models
from kernels.benchmarks.goals.project_goals import project_goals
from kernels.benchmarks.offline.record import distinct_kernels, offline_table
from parts import part, pictures
from parts.layout import fenced

PAGE = Path(__file__).resolve().parents[1] / "kernels.md"
OFFLINE = BENCHMARKS / "offline.json"
OFFLINE_3_6 = BENCHMARKS / "offline-triton-3.6.json"
"""Written by ``python -m kernels.benchmarks offline``, which takes long; the second one with Triton 3.6, for sm_90."""


@part
def kernel_text() -> str:
    spec = ReadSpec(sources=1, has_inter=False, adds=True, norm="rms", has_weight=True, returns_value=False)
    return fenced(read_text(spec))


@part
def compiled_kernels() -> str:
    return fenced(offline_table(json.loads(OFFLINE.read_text())))


@part
def spills_with_triton_3_6() -> str:
    """Kernels that spill or load less than 128 bits, and how many of the record are still what is generated."""
    record = json.loads(OFFLINE_3_6.read_text())
    kernels, today = record["kernels"], {kernel.digest for kernel in distinct_kernels()}
    still = sum(kernel["digest"] in today for kernel in kernels)
    rows = []
    for kernel in kernels:
        facts = kernel["compiled"]["sm_90"]
        if "error" in facts or facts["spilled_bytes"] or facts["narrowest_load"] != 128:
            shapes = (", ".join(map(str, kernel[name])) for name in ("widths", "sources", "reads"))
            rows.append([kernel["kind"], *shapes, *map(facts.get, ("registers", "spilled_bytes", "narrowest_load"))])
    headers = ["kernel", "d", "n", "S", "registers", "spilled bytes", "narrowest load [bits]"]
    environment = record["environment"]
    heading = (
        f"{len(rows)} of {len(kernels)} kernels, {still} of which are as generated today; "
        f"triton {environment['versions']['triton']}, {environment['date'][:10]}"
    )
    return fenced(f"{heading}\n{tabulate(rows, headers, disable_numparse=True)}")


@part
def goals_on_gpus() -> str:
    records = gpu_records()
    texts = [] if records else ["Not measured yet: no record in [benchmarks](benchmarks) is of a GPU."]
    for device, found in project_goals(records.values()).items():
        texts += [f"**{device}**"] * bool(records) + [goals_table(found, "md")]
    return "\n\n".join(texts) + "\n"


@part
def kernels_on_gpus() -> str:
    texts = []
    for merged in merged_kernels(gpu_records().values()):
        device, cells = merged["environment"]["device"], merged["cells"]
        skipped = [f"{cell_title(cell)}: {cell['skipped']}" for cell in cells if "skipped" in cell]
        shown = [f"![{device}, {level}](pictures/{name}.svg)" for level, name, _ in _levels(merged)]
        notes = [f"- {note}" for note in (*not_timed(cells), *skipped)]
        texts += [f"**{device}**", _sources(KERNELS, device), *shown, summary_table(cells, "md"), "\n".join(notes)]
    return "\n\n".join(filter(None, texts)) + "\n" if texts else _not_measured("kernel", COMMAND)


@part
def models_on_gpus() -> str:
    texts = []
    for merged, name in _models():
        device, model = merged["environment"]["device"], merged["model"]["name"]
        shown = f"![{model} on {device}](pictures/{name}.svg)" if _is_drawn(merged) else ""
        texts += [f"**{model}, {device}**", _sources(MODEL, device, model), shown, fenced(model_table(merged)).rstrip()]
    return "\n\n".join(filter(None, texts)) + "\n" if texts else _not_measured("model", f"attnres {MODEL}")


@pictures
def measured() -> dict[str, str]:
    """A picture of each level of each GPU, and of each model on each."""
    kernels = [drawn for merged in merged_kernels(gpu_records().values()) for drawn in _levels(merged)]
    figures = {name: kernels_figure(record) for _, name, record in kernels}
    figures |= {name: model_figure(merged) for merged, name in _models() if _is_drawn(merged)}
    return {name: figure_bytes(figure, "svg").decode() for name, figure in figures.items()}


def _levels(merged: Record) -> list[tuple[str, str, Record]]:
    """The levels of which something was measured, whole blocks first: name, name of the picture, record."""
    found = []
    for level in reversed(LEVELS):
        cells = [cell for cell in merged["cells"] if cell["level"] == level]
        if any(arm["status"] == MEASURED for cell in cells for arm in cell.get("arms", [])):
            name = _name("measured", merged["environment"]["device"], level)
            found.append((level, name, merged | {"cells": cells}))
    return found


def _models() -> list[tuple[Record, str]]:
    """The merged records of models, with the names of their pictures."""
    found: dict[str, Record] = {}
    for merged in merged_models(gpu_records().values()):
        shapes = ["x".join(map(str, shape)) for shape in merged["inputs"].values()]
        told = merged["environment"]["device"], merged["model"]["name"], merged["job"]["load"]["dtype"], *shapes
        name = _name("measured", *told)
        found[name if name not in found else f"{name}-{len(found)}"] = merged
    return [(merged, name) for name, merged in found.items()]


def _is_drawn(merged: Record) -> bool:
    return any("latency" in cell for cell in merged["cells"])


def _name(*words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower())


def _sources(kind: str, device: str, model: str | None = None) -> str:
    """The records of a kind, device and model, as links with their dates."""
    return "Records: " + ", ".join(
        f"[{name}](benchmarks/{name}) ({record['environment']['date'][:10]})"
        for name, record in gpu_records().items()
        if (record["kind"], record["environment"]["device"]) == (kind, device)
        and model in (None, record.get("model", {}).get("name"))
    )


def _not_measured(what: str, command: str) -> str:
    text = f"Not measured yet: no {what} record in [benchmarks](benchmarks) is of a GPU. To measure, on one:"
    return f"{text}\n\n{fenced(chr(10).join(_command_lines(command)), 'sh')}"


def _command_lines(command: str) -> Iterable[str]:
    """The lines of the last section of the page that run a command."""
    section = PAGE.read_text().partition("### Measuring within 30 minutes\n")[2]
    return re.findall(rf"^timeout \d+ {command} .*$", section, re.MULTILINE)
