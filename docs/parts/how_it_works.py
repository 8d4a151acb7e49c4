"""The parts of how_it_works.md: one model followed through the compiler, up to the rewritten graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import example_variants
import torch
from example_model import example

import attnres_compile
from attnres_compile.capture.capture import capture
from attnres_compile.model.parameters import AttnResParameters
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import find_chains
from attnres_passes.analyses.degrees.degree import ZERO
from attnres_passes.analyses.degrees.rules import output_degrees
from attnres_passes.analyses.reads import find_reads
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.levels import RULES, Level
from attnres_passes.ir.plan import Reason
from attnres_passes.rewrite.rewrite import rewrite
from parts import part
from parts.layout import excerpt, fenced, table

DOCS = Path(__file__).resolve().parents[1]
OPTIONS = {"num_blocks": 2}


@functools.cache
def explained() -> attnres_compile.Explanation:
    model, args, kwargs = example()
    return attnres_compile.explain(model, args, kwargs, **OPTIONS)


@functools.cache
def traced(model: Callable[[], torch.nn.Module] | None = None) -> AtenTrace:
    module, args, kwargs = example() if model is None else (model(), (example_variants.states(),), {})
    return trace_aten(capture(module, args, kwargs).graphs[0].gm)


@part
def version() -> str:
    major, minor = torch.__version__.split(".")[:2]
    return f"The generated parts of these pages were made with torch {major}.{minor}.\n"


@part
def model() -> str:
    return fenced((DOCS / "example_model.py").read_text(), "python")


@part
def levels() -> str:
    rows = [[level.value, rule.says] for level in Level for rule in RULES[level]]
    return table(rows, ["level", "rule"])


@part
def captured() -> str:
    return excerpt(explained().text("captured"), "# h.0.attn.out", "# h.1.attn.inp")


@part
def trace() -> str:
    """The first addition and the read behind it."""
    found = traced()
    first = find_chains(found)[0].additions[0].op
    return operations(found, list(range(first - 4, first + 2)))


def operations(trace: AtenTrace, indices: list[int]) -> str:
    rows = []
    for index in indices:
        op = trace.ops[index]
        rows.append([op.index, trace.nodes[op.node].name, op.name, numbers(op.inputs), numbers(op.outputs)])
    return table(rows, ["operation", "node", "operator", "reads values", "gives values"])


def numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


@part
def in_place() -> str:
    found = traced(example_variants.InPlace)
    wanted = ("aten.mul", "aten.native_layer_norm", "aten.add_")
    return operations(found, [op.index for op in found.ops if op.name in wanted])


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
def plan() -> str:
    return fenced(str(explained().plan))


@part
def rewritten() -> str:
    return excerpt(explained().text("rewritten"), "# h.0.attn.out", "# h.1.attn.inp")


@part
def rewritten_last() -> str:
    return excerpt(explained().text("rewritten"), "# ln_f", "return")


@part
def parameters() -> str:
    model, args, kwargs = example()
    gm = capture(model, args, kwargs).graphs[0].gm
    analysis = find_streams(trace_aten(gm), attnres_compile.AttnResConfig(**OPTIONS))
    result = rewrite(gm, analysis)
    added = [
        node for node in result.gm.graph.nodes if (annotation := annotation_of(node)) and annotation.kind == "parameter"
    ]
    rows = []
    registered = AttnResParameters(analysis.plan, torch.float32, torch.device("cpu"))
    for node, parameter in zip(added, result.parameters, strict=True):
        name = "query" if parameter.name == "query" else "key_norm.weight"
        path = f"model.attnres.{registered.path(parameter.read)}.{name}"
        rows.append([node.target, path, analysis.plan.depth_reads[parameter.read].module])
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
def scaled() -> str:
    return excerpt(variant_text(example_variants.Scaled()), "mul_2:", "# mlps.1.up")


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
