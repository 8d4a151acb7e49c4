"""Our reads beside other people's: launches and bytes of the same work, and a model of its time.

Every arm of ``against_peers`` that does one read is called for each shape, forward and backward, with its launches
recorded. The first table has the model of an arm's time by its bytes alone,

    bytes / bandwidth + launches x seconds of a launch

for launches that wait for one another, by bandwidth that a copy reaches: a bound from below. Then each launch is
compiled as it is (``code``), and what that says goes into the others, with a model of what holds a launch up
(``time_model``). The first measurement on a GPU confirms or refutes both, by the order of the arms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from attnres_compile.progress import each
from attnres_compile.report.comparison import MeasureError
from attnres_compile.report.records import check_record, package_version, record_head
from attnres_passes.torch_private.example_values import fake_mode_of

from ..against_peers.arms.arm import EAGER, KERNELS, Arm
from ..against_peers.arms.generated import kernel_arms
from ..against_peers.arms.peers import PACKAGES, PEERS, Peer, peer_arms
from ..against_peers.timing import first_line
from ..against_peers.work import OP, Inputs, Shape
from ..goals.project_goals import DTYPE, SOURCES, WIDTHS
from .code import code_facts
from .code_table import PARTS, SHOWN, launch_lines, summary_lines
from .launches import Launch, Recorded, recording
from .summary import PER_TOKEN

KIND, SCHEMA_VERSION = "bench static", 2
COMMAND = "python -m kernels.benchmarks static"
TOKENS = 8192
BANDWIDTH, LAUNCH_SECONDS = 4.3e12, 2e-6
"""Of a copy on an H200, bytes read and written; of a launch behind another one on the same stream."""
SMALL = 0.01
"""Share of a row tensor below which a launch counts as a small one: of parameters and of sums over tokens."""

OWN = "kernels, own logits"
EVERYWHERE = {"forward": (OWN, "fla-core triton"), "backward": (OWN, "liger-kernel")}
"""Arms whose kernels are compiled for every shape: those that move the fewest bytes."""
UNCOMPILED = ("fla-core triton, keeps mix", "flash-attn-res")
"""Those whose kernels are compiled for none: another arm's, with one tensor more or one sum less; and those that move
nearly three times the bytes, on whose tiles of all sources the assembler works for minutes.
"""

_HIDDEN = ("fla-core gluon", "fast-attnres")
"""Peers whose launches go through neither of Triton's two functions, or that are written in Gluon."""


def static_record(
    command: Sequence[str] = (), shapes: Sequence[Shape] = (), earlier: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The launches of every arm and shape, as a record for JSON.

    Args:
        command: its words, for the record.
        shapes: of single reads; none for those of the goals.
        earlier: a record of the same Triton; what it compiled is taken over where it is the same.

    Raises:
        MeasureError: an earlier record of another Triton or another version.
    """
    known = {} if earlier is None else _code_of(earlier)
    shapes = shapes or [Shape(OP, TOKENS, width, sources, 1, DTYPE) for width, sources in product(WIDTHS, SOURCES)]
    record = {**record_head(KIND, SCHEMA_VERSION, command, "cpu"), "cells": []}
    record["environment"]["versions"] |= {name: package_version(name) for name in PACKAGES}
    peers = tuple(peer for peer in PEERS if peer.name not in _HIDDEN)
    with recording() as recorded:
        for shape in each(shapes, "recording the launches of a shape"):
            arms = [_recorded(arm, shape, recorded) for arm in _arms(shape, peers)]
            record["cells"].append(asdict(shape) | {"row_bytes": shape.row_bytes, "arms": arms})
    of_digest = each(list(recorded.specializations.items()), "compiling a kernel")
    record["code"] = {digest: known.get(digest) or code_facts(launched) for digest, launched in of_digest}
    return record


def _code_of(earlier: dict[str, Any]) -> dict[str, Any]:
    check_record(earlier, KIND, SCHEMA_VERSION, command=COMMAND, remedy="leave --earlier out")
    then, now = earlier["environment"]["versions"]["triton"], package_version("triton")
    if then != now:
        raise MeasureError(f"the earlier record was made with Triton {then}, and here is {now}: leave --earlier out")
    code: dict[str, Any] = earlier["code"]
    return code


def of_arm(name: str, part: str, shape: Shape) -> Callable[[list[Any]], list[Any]]:
    """Which configurations of an arm's kernels are compiled: those of the fewest stages, and elsewhere than for the
    shape that is shown also of the fewest warps.

    Args:
        name: of the arm.
        part: "forward" or "backward".
        shape: of the read.
    """
    is_shown = (shape.width, shape.sources) == SHOWN
    if name in UNCOMPILED or not (is_shown or name in EVERYWHERE[part]):
        return _none_of
    return partial(thinned_out, also_warps=not is_shown)


def _none_of(_configs: list[Any]) -> list[Any]:
    return []


def thinned_out(configs: list[Any], also_warps: bool) -> list[Any]:
    """An autotuner's configurations of the fewest stages: code that is not pipelined is the same with more.

    Args:
        configs: all of them, or None alone.
        also_warps: those of the fewest warps only.
    """
    if configs == [None]:
        return configs
    stages = min(config.num_stages for config in configs)
    found = [config for config in configs if config.num_stages == stages]
    warps = min(config.num_warps for config in found)
    return [config for config in found if not also_warps or config.num_warps == warps]


def _arms(shape: Shape, peers: tuple[Peer, ...]) -> list[Arm]:
    # The device is asked for by the arms of peers alone, which check for a GPU.
    own = [arm for arm in kernel_arms(shape, EAGER) if not arm.note]
    return [*own, *peer_arms(shape, torch.device("cuda"), EAGER, peers)]


def _recorded(arm: Arm, shape: Shape, recorded: Recorded) -> dict[str, Any]:
    told: dict[str, Any] = {"name": arm.name, "kind": arm.kind}
    if arm.call is None:
        return told | {"missing": arm.unsupported or f"the same calls as {arm.same_as}"}
    try:
        # Operators of ours have shapes of their own for fake tensors, which launch nothing.
        if arm.kind == KERNELS:
            return told | _parts(arm, shape, recorded)
        with fake_mode_of([]):
            return told | _parts(arm, shape, recorded)
    except Exception as error:  # of other people's code, of any class
        recorded.taken()
        return told | {"missing": first_line(error)}


def _parts(arm: Arm, shape: Shape, recorded: Recorded) -> dict[str, Any]:
    assert arm.call is not None
    inputs = _inputs(shape)
    given = arm.prepare(inputs)
    recorded.taken()
    recorded.keeps = of_arm(arm.name, "forward", shape)
    outputs = arm.call(inputs, given)
    forward = recorded.taken()
    leaves = list(inputs.leaves(shape.reads).values())
    recorded.keeps = of_arm(arm.name, "backward", shape)
    torch.autograd.grad(outputs, leaves, [torch.empty_like(x) for x in outputs], allow_unused=True)
    return {"forward": _listed(forward), "backward": _listed(recorded.taken())}


def _inputs(shape: Shape) -> Inputs:
    """As ``make_inputs``, of which nothing is read."""

    def made(*size: int) -> Tensor:
        return torch.empty(size, dtype=shape.torch_dtype, requires_grad=True)

    rows = (shape.tokens, shape.width)
    return Inputs([made(*rows) for _ in range(shape.sources)], [made(*rows)], [made(rows[1])], [made(rows[1])], [])


def _listed(launches: list[Launch]) -> list[dict[str, Any]]:
    return [asdict(one) for one in launches]


def static_table(record: dict[str, Any]) -> str:
    """A line per shape and direction, a column per arm: bytes in rows ``[T, d]``, launches, and the model's time.

    Raises MeasureError for a record of another kind or version.
    """
    check_record(record, KIND, SCHEMA_VERSION, command=COMMAND, remedy="record again")
    names = list(dict.fromkeys(arm["name"] for cell in record["cells"] for arm in cell["arms"] if PARTS[0] in arm))
    rows = [_row(cell, part, names) for cell in record["cells"] for part in PARTS]
    versions = record["environment"]["versions"]
    peers = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if versions.get(name))
    heading = (
        f"one read, T {TOKENS}, {DTYPE}: bytes in [T, d], launches + those of parameters, time by the model\n"
        f"{peers or 'no peers'}; triton {versions['triton']}, {record['environment']['date'][:10]}"
    )
    table = tabulate(rows, ["shape", "", *names], disable_numparse=True)
    lines = [heading, table, *_missing(record), *verdict(record)]
    return "\n".join([*lines, "", *launch_lines(record), "", *summary_lines(record)])


def _row(cell: dict[str, Any], part: str, names: Sequence[str]) -> list[str]:
    arms = {arm["name"]: arm for arm in cell["arms"]}
    return [_shape(cell), part, *(_numbers(arms[name], part, cell["row_bytes"]) for name in names)]


def _shape(cell: dict[str, Any]) -> str:
    return f"d {cell['width']}, n {cell['sources']}"


def _numbers(arm: dict[str, Any], part: str, row_bytes: int) -> str:
    if part not in arm:
        return "-"
    small = sum(one["nbytes"] < SMALL * row_bytes for one in arm[part])
    moved, count = total_bytes(arm, part), len(arm[part])
    seconds = moved / BANDWIDTH + count * LAUNCH_SECONDS
    return f"{moved / row_bytes:.2f}  {count - small}+{small}  {1e6 * seconds:.0f} us"


def total_bytes(arm: dict[str, Any], part: str) -> int:
    """What the launches of a part move.

    Args:
        arm: of a record.
        part: "forward" or "backward".
    """
    return sum(int(one["nbytes"]) for one in arm[part])


def _missing(record: dict[str, Any]) -> list[str]:
    found = {f"{arm['name']}: {arm['missing']}" for cell in record["cells"] for arm in cell["arms"] if "missing" in arm}
    return sorted(found)


def verdict(record: dict[str, Any]) -> list[str]:
    """On how many shapes our best arm moves no more than the best peer, and where it does not."""
    lines = []
    for part in PARTS:
        ratios = dict(filter(None, [_ratio(cell, part) for cell in record["cells"]]))
        reached = sum(ratio <= 1 + PER_TOKEN for ratio in ratios.values())
        if ratios:
            lines.append(
                f"{part}: ours at or below the best peer in bytes on {reached} of {len(ratios)} shapes, "
                f"{min(ratios.values()):.4f} to {max(ratios.values()):.4f} times"
            )
        lines += [f"  {shape}: {ratio:.3f} times" for shape, ratio in ratios.items() if ratio > 1 + PER_TOKEN]
    return lines


def _ratio(cell: dict[str, Any], part: str) -> tuple[str, float] | None:
    """Bytes of our best arm over those of the best peer, if there is one."""
    moved: dict[bool, list[int]] = {True: [], False: []}
    for arm in cell["arms"]:
        if part in arm:
            moved[arm["kind"] == KERNELS].append(total_bytes(arm, part))
    return (_shape(cell), min(moved[True]) / min(moved[False])) if moved[False] else None
