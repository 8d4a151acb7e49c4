"""Rewrite the generated parts of the pages in this folder, and the pictures, from what the compiler prints today.

A part begins with `<!-- generated: NAME -->`, the name of a function below, and ends with `<!-- end -->`. A picture is
a file of the folder `pictures`, made by the function of its name.

python docs/regenerate.py            # rewrites them
python docs/regenerate.py --check    # writes nothing; exits with 1 and shows the difference if one is stale
python docs/regenerate.py --overhead [PRESET ..]    # first counts the overhead of presets anew, which takes minutes
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are shown, and neither compiled nor run

import example_variants
import torch
from example_model import TinyGPT, example
from tabulate import tabulate

import attnres_compile
from attnres_compile.bench.offline import offline_table
from attnres_compile.capture import capture
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.presets import PRESETS, small
from attnres_compile.models.source import load_model
from attnres_compile.report.quantities import percent, quantity
from attnres_compile.report.table import (
    FORWARD_FLOPS,
    PARAMETERS,
    RESIDUAL_IO,
    SAVED,
    TRAINING_FLOPS,
    OverheadReport,
)
from attnres_kernels.depth_attention import cost
from attnres_kernels.depth_attention.generated.read import read_text
from attnres_kernels.depth_attention.generated.specs import ReadSpec
from attnres_passes.aten_trace import AtenTrace, trace_aten
from attnres_passes.chains import find_chains
from attnres_passes.degree_rules import ZERO, output_degrees
from attnres_passes.grouping import group_reads
from attnres_passes.levels import RULES, Level
from attnres_passes.plan import Reason
from attnres_passes.reads import find_reads
from attnres_passes.rewrite import rewrite
from attnres_passes.roles import role_of
from attnres_passes.stage_layout import StageLayout
from attnres_passes.stage_partition import even_cuts
from attnres_passes.stage_text import stage_picture, stage_table
from attnres_passes.streams import find_streams
from attnres_passes.transfer_cost import sweep
from attnres_passes.transfers import StagePlan, plan_stages

DOCS = Path(__file__).resolve().parent
PART = re.compile(r"(?P<open><!-- generated: (?P<name>\S+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL)
OPTIONS = {"num_blocks": 2}

PARTS: dict[str, Callable[[], str]] = {}
PICTURES: dict[str, Callable[[], str]] = {}


def picture(function: Callable[[], str]) -> Callable[[], str]:
    PICTURES[function.__name__.replace("_", "-")] = function
    return function


def part(function: Callable[[], str]) -> Callable[[], str]:
    PARTS[function.__name__] = function
    return function


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def table(rows: list[list[object]], headers: list[str]) -> str:
    return fenced(tabulate(rows, headers=headers, disable_numparse=True))


def excerpt(text: str, first: str, last: str) -> str:
    """The lines from the first one with ``first`` in it up to the next one with ``last`` in it."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if first in line)
    stop = next(k for k, line in enumerate(lines) if k > start and last in line)
    return fenced("\n".join(["    ...", *lines[start:stop], "    ..."]))


@functools.cache
def explained() -> attnres_compile.Explanation:
    model, args, kwargs = example()
    return attnres_compile.explain(model, args, kwargs, **OPTIONS)


@functools.cache
def traced(model: Callable[[], torch.nn.Module] | None = None) -> AtenTrace:
    module, args, kwargs = example() if model is None else (model(), (example_variants.states(),), {})
    return trace_aten(capture(module, args, kwargs).graphs[0].gm)


def operations(trace: AtenTrace, indices: list[int]) -> str:
    rows = []
    for index in indices:
        op = trace.ops[index]
        rows.append([op.index, trace.nodes[op.node].name, op.name, numbers(op.inputs), numbers(op.outputs)])
    return table(rows, ["operation", "node", "operator", "reads values", "gives values"])


def numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


@part
def version() -> str:
    major, minor = torch.__version__.split(".")[:2]
    return f"The generated parts of this page were made with torch {major}.{minor}.\n"


@part
def model() -> str:
    return fenced((DOCS / "example_model.py").read_text(), "python")


@part
def plan() -> str:
    return fenced(str(explained().plan))


@part
def captured() -> str:
    return excerpt(explained().text("captured"), "# h.0.attn.out", "# h.1.attn.inp")


@part
def rewritten() -> str:
    return excerpt(explained().text("rewritten"), "# h.0.attn.out", "# h.1.attn.inp")


@part
def rewritten_last() -> str:
    return excerpt(explained().text("rewritten"), "# ln_f", "return")


@part
def scheduled_second() -> str:
    return excerpt(explained().text("scheduled"), "logits_1", "layer_norm_2:")


@part
def lowered_second() -> str:
    return excerpt(explained().text("lowered"), "keys_of_group_1 = ", "layer_norm_2:")


@functools.cache
def explained_on_kernels() -> attnres_compile.Explanation:
    """With the reads on generated kernels, as on a GPU; nothing is run."""
    os.environ["ATTNRES_KERNELS"] = "triton"
    try:
        model, args, kwargs = example()
        return attnres_compile.explain(model, args, kwargs, **OPTIONS)
    finally:
        del os.environ["ATTNRES_KERNELS"]


@part
def schedule_table() -> str:
    return fenced(str(group_reads([1 + read // 3 for read in range(1, 25)], "auto", most_in_place=12)))


@part
def fused_read() -> str:
    return excerpt(explained_on_kernels().text("scheduled"), "fused_direct_read(", "linear_2:")


@part
def lowered_kernels() -> str:
    return excerpt(explained_on_kernels().text("lowered"), "link_sources = ", "linear_2:")


@part
def fused_report() -> str:
    return fenced("\n".join(explained_on_kernels().schedule.splitlines()[-2:]))


@part
def trace() -> str:
    """The first addition and the read behind it."""
    found = traced()
    first = find_chains(found)[0].additions[0].op
    return operations(found, list(range(first - 4, first + 2)))


@part
def degrees() -> str:
    """How the degree travels from a state through a hand-written norm and on to the next product."""
    found = traced(functools.partial(example_variants.Variant, norm=example_variants.HandwrittenNorm))
    state = find_chains(found)[0].additions[0].after
    degree_of = {state: ZERO + 1}
    rows: list[list[object]] = []
    for op in found.ops:
        is_live = op.index in found.node_ops[op.node]
        if is_live and any(value in degree_of for value in op.inputs) and len(rows) < 6:
            given = output_degrees(op, lambda value: degree_of.get(value, ZERO))
            degree_of.update(zip(op.outputs, given, strict=True))
            rows.append([op.name, *(", ".join(shown(degree_of.get(v, ZERO)) for v in op.inputs),), shown(given[0])])
    return table(rows, ["operator", "degrees in", "degree out"])


def shown(degree: object) -> str:
    return "unknown" if degree is None else str(degree)


@part
def chain() -> str:
    candidate = find_chains(traced())[0]
    rows = [
        [
            f"s_{k} = s_{k - 1} + v_{k}",
            traced().nodes[traced().ops[a.op].node].name,
            a.state,
            a.branch,
            a.after,
        ]
        for k, a in enumerate(candidate.additions, start=1)
    ]
    return table(rows, ["addition", "node", "state before", "branch", "state after"])


@part
def reads() -> str:
    found = traced()
    groups = find_reads(found, find_chains(found)[0], frozenset()).groups
    rows = [
        [
            f"s_{read.state}",
            ", ".join(found.nodes[node].name for _, node in read.uses),
            "yes" if read.normed else "no",
        ]
        for read in groups
    ]
    return table(rows, ["state", "read by node", "normed"])


@part
def in_place() -> str:
    found = traced(example_variants.InPlace)
    wanted = ("aten.mul", "aten.native_layer_norm", "aten.add_")
    return operations(found, [op.index for op in found.ops if op.name in wanted])


@part
def parameters() -> str:
    model, args, kwargs = example()
    gm = capture(model, args, kwargs).graphs[0].gm
    analysis = find_streams(trace_aten(gm), attnres_compile.AttnResConfig(**OPTIONS))
    result = rewrite(gm, analysis)
    added = [node for node in result.gm.graph.nodes if (role := role_of(node)) and role.kind == "parameter"]
    rows = []
    for node, slot in zip(added, result.slots, strict=True):
        name = "query" if slot.name == "query" else "key_norm.weight"
        path = f"model.attnres.streams[{slot.stream}].reads[{slot.read}].{name}"
        rows.append([node.target, path, analysis.plan.streams[slot.stream].reads[role_of(node).read].module])
    return table(rows, ["placeholder", "parameter", "read in"])


def variant_text(model: torch.nn.Module) -> str:
    return attnres_compile.explain(model.train(), (example_variants.states(),)).text("rewritten")


@part
def reshaped_read() -> str:
    return excerpt(variant_text(example_variants.Reshaped()), "read_0_1:", "# mlps.1.up")


@part
def reshaped_write() -> str:
    return excerpt(variant_text(example_variants.Reshaped()), "# mlps.1.down", "# norms.2")


@part
def cast() -> str:
    return excerpt(variant_text(example_variants.Cast()), "x_1: bf16", "# norms.1")


@part
def dropped() -> str:
    return excerpt(variant_text(example_variants.Dropped()), "ones_like", "layer_norm_1:")


@part
def declined() -> str:
    """One message per reason; paths differ from machine to machine and are cut to file names."""
    missing = {str(reason) for reason in Reason} - set(example_variants.DECLINED)
    assert not missing, f"no example for {missing}"
    messages = []
    for reason, (make, give, options) in example_variants.DECLINED.items():
        plan = attnres_compile.explain(make(), (give(),), on_decline="ignore", **options).plan
        message = next(str(decline) for decline in plan.declined if decline.reason == reason)
        messages.append(message.replace(f"{DOCS}/", ""))
    return fenced("\n\n".join(messages))


@part
def verification() -> str:
    """Rounding differs from machine to machine, so the errors are blanked."""
    model, args, kwargs = example()
    text = str(attnres_compile.verify(model, args, kwargs, **OPTIONS))
    return fenced(re.sub(r"\d\.\de[+-]\d\d", "#.#e-##", text))


@part
def costs() -> str:
    rows = [
        [
            n,
            *(f"{value:.2f}" for value in (cost.direct(n), *(cost.two_phase(n, s) for s in (2, 8)), cost.naive(n))),
        ]
        for n in (1, 2, 4, 8)
    ]
    return table(rows, ["completed blocks", "direct", "two-phase, 2 reads", "two-phase, 8 reads", "naive, unfused"])


@part
def levels() -> str:
    rows = [[level.value, rule.says] for level in Level for rule in RULES[level]]
    return table(rows, ["level", "rule"])


@part
def recording() -> str:
    return fenced(str(attnres_compile.DepthWeights.load(DOCS / "pictures" / "depth_weights.json")))


@part
def kernel_text() -> str:
    spec = ReadSpec(sources=1, has_inter=False, adds=True, norm="rms", has_weight=True, returns_value=False)
    return fenced(read_text(spec))


@part
def inspection_version() -> str:
    torch_is, transformers_is = (
        ".".join(importlib.metadata.version(name).split(".")[:2]) for name in ("torch", "transformers")
    )
    return f"The pictures and texts of this page were made with torch {torch_is} and transformers {transformers_is}.\n"


@part
def inspection_text() -> str:
    return fenced(re.sub(r"^made with: .*$", "made with: ..", explained().report(), flags=re.MULTILINE))


@part
def inspection_diff() -> str:
    return fenced(explained().diff(), "diff")


@functools.cache
def preset(name: str, seq: int | None = 64, **options: Any) -> attnres_compile.Explanation:
    loaded = load_model(name, LoadOptions(seq=seq))
    return attnres_compile.explain(loaded.model, loaded.args, loaded.kwargs, name=name, **options)


@picture
def gpt2() -> str:
    return preset("gpt2").to_svg()


@picture
def gpt2_unfolded() -> str:
    """The layers around the end of the first block and of the last one."""
    return preset("gpt2").to_svg(["1", "2", "11"])


@picture
def llama_full() -> str:
    return preset("llama-tiny", block_size=1).to_svg(["all"])


@picture
def whisper() -> str:
    return preset("whisper-tiny").to_svg()


@picture
def vit() -> str:
    return preset("vit-tiny", seq=None, num_blocks=3).to_svg(["all"])


@picture
def deep() -> str:
    return attnres_compile.explain(TinyGPT(layers=32), (torch.zeros(1, 8, dtype=torch.long),)).to_svg()


@picture
def declined_model() -> str:
    make, give, _ = example_variants.DECLINED["post_norm"]
    return attnres_compile.explain(make(), (give(),), on_decline="ignore").to_svg()


OVERHEAD = DOCS / "overhead"
"""The report of each published preset, as ``attnres report PRESET --format json`` counted it."""


def published() -> list[str]:
    return [preset.name for preset in PRESETS.values() if preset not in small.PRESETS]


def count_overhead(names: list[str]) -> None:
    """Keep the reports of these presets; each in a process of its own, so that none holds on to memory."""
    OVERHEAD.mkdir(exist_ok=True)
    for name in names:
        command = [sys.executable, "-m", "attnres_compile", "report", name, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip()}")
        record = json.loads(done.stdout)
        record["environment"] = {"versions": record["environment"]["versions"]}
        (OVERHEAD / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"counted {name}", flush=True)


def overhead_records() -> dict[str, OverheadReport]:
    """The records that there are, in the order of the presets."""
    paths = {name: OVERHEAD / f"{name}.json" for name in published()}
    return {
        name: OverheadReport.from_dict(json.loads(path.read_text())) for name, path in paths.items() if path.exists()
    }


@part
def overhead_summary() -> str:
    """One line per preset: what a reader compares models by."""
    metrics = (PARAMETERS, FORWARD_FLOPS, TRAINING_FLOPS, SAVED, RESIDUAL_IO)
    rows = []
    for name, report in overhead_records().items():
        of_metric = {row.metric: row for row in report.rows}
        io = of_metric[RESIDUAL_IO]
        cells = [percent(of_metric[metric].delta_percent) for metric in metrics]
        bytes_moved = f"{quantity(io.plain, 'B')} → {quantity(io.attnres, 'B')}"
        rows.append([name, of_metric[PARAMETERS].cells()[1], *cells, bytes_moved])
    headers = ["preset", "parameters", *(f"Δ {metric}" for metric in metrics[:-1]), "Δ residual I/O", "per token"]
    lines = [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
    missing = [name for name in published() if name not in overhead_records()]
    if missing:
        lines += [f"Presets without a record yet: {', '.join(missing)}.", ""]
    return "\n".join(lines)


@part
def overhead_tables() -> str:
    texts = []
    for name, report in overhead_records().items():
        shape = "\n".join(f"- {line}" for line in (f"source: {PRESETS[name].source}", *report.shape))
        texts.append(f"### {name}\n\n{shape}\n\n{report.to_markdown()}\n")
    return "\n".join(texts)


@part
def compiled_kernels() -> str:
    """From the record of `attnres bench offline`, which takes long to make."""
    record = json.loads((DOCS / "benchmarks" / "offline.json").read_text())
    return fenced(offline_table(record))


def regenerated(text: str) -> str:
    """A page with its generated parts made anew."""
    return PART.sub(lambda found: f"{found['open']}{PARTS[found['name']]()}{found['close']}", text)


def stage_plan(transfer: str) -> StagePlan:
    """12 layers of two sublayers each, on 4 processes of 2 chunks."""
    layers = [f"h.{layer}.{part}" for layer in range(12) for part in ("attn", "mlp")]
    layout = StageLayout(4, 2)
    return plan_stages(layout, even_cuts(len(layers), layout.chunks), 3, transfer, layers)


@part
def pipeline_stages() -> str:
    plan = stage_plan("cached")
    return fenced(f"{stage_table(plan)}\n\n{stage_picture(plan)}")


@part
def pipeline_naive() -> str:
    return fenced(stage_picture(stage_plan("naive")))


@part
def pipeline_costs() -> str:
    """Layouts of the 12-layer model, and of one of Kimi K3's shape: 93 layers, 12 a block."""
    rows: list[list[object]] = []
    for writes, block_size, ranks, virtuals in ((24, 3, (2, 4), (1, 2, 4)), (186, 24, (4, 8, 16), (1, 2, 4))):
        for row in sweep(writes, block_size, ranks, virtuals):
            costs = [f"{cost.units} ({cost.peak} at most on a hop)" for cost in (row.naive, row.cached)]
            stored = [max(cost.stored) for cost in (row.naive, row.cached)]
            rows.append([writes // 2, row.layout.ranks, row.layout.virtual, *costs, *stored])
    headers = ["layers", "P", "V", "naive, units", "cached, units", "naive, stored", "cached, stored"]
    return table(rows, headers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit with 1 if a page or a picture is out of date"
    )
    parser.add_argument("--overhead", nargs="*", metavar="PRESET", help="count these anew first (default all)")
    arguments = parser.parse_args()
    if arguments.overhead is not None:
        count_overhead(arguments.overhead or published())
    stale = False
    pages = {page: lambda page=page: regenerated(page.read_text()) for page in sorted(DOCS.glob("*.md"))}
    pictures = {DOCS / "pictures" / f"{name}.svg": make for name, make in PICTURES.items()}
    for path, make in {**pages, **pictures}.items():
        old = path.read_text() if path.exists() else ""
        new = make()
        if old == new:
            continue
        stale = True
        if arguments.check:
            lines = difflib.unified_diff(
                old.splitlines(), new.splitlines(), f"{path.name} as it is", "regenerated", lineterm=""
            )
            print("\n".join(lines))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(new)
            print(f"rewrote {path.name}")
    return int(stale and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
