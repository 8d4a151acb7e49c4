"""What becomes of one model: it is made small, run, planned, and verified if anything of it is rewritten."""

from __future__ import annotations

import importlib.metadata
import os
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from attnres_compile.api.prepare import config_from
from attnres_compile.api.verify import verify
from attnres_compile.capture.analysis import plan_model
from attnres_compile.sweep.making.errors import NotMadeError
from attnres_compile.sweep.making.small_model import SmallModel
from attnres_compile.sweep.record import Found, ModelRecord, Outcome
from attnres_kernels.errors import AttnResError
from attnres_passes.ir.levels import LevelError
from attnres_passes.ir.plan import Plan, Stream, short_source

_DECLINES_KEPT = 8
_REASON_LENGTH = 600
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s:'\"()]+/)+(?=[^/\s:'\"()]+\.py\b)")


def judge(name: str, library: str, make: Callable[[], SmallModel]) -> ModelRecord:
    """The record of one model. Raises only what is no Exception.

    Args:
        name: of the model type.
        library: that it is of.
        make: makes it.
    """
    work = _Work()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = _judged(make, work)
    except Exception as error:  # whatever it is, it is what the sweep is looking for
        outcome = _outcome_of(error)
        work.record["reason"] = _reason(error, outcome)
    versions = {one: importlib.metadata.version(one) for one in ("torch", library)}
    return ModelRecord(name, library, outcome, **work.record, seconds=work.seconds, versions=versions)


@dataclass
class _Work:
    record: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[step] = round(time.process_time() - began, 2)


def _judged(make: Callable[[], SmallModel], work: _Work) -> Outcome:
    with work.timed("make"):
        made = make()
        work.record |= {"how": made.how, "layers": called_layers(made)}
    config = config_from(None, {"on_decline": "ignore"})
    with work.timed("plan"):
        plan = plan_model(made.module, made.args, made.kwargs, config)
        work.record |= {"streams": tuple(map(_found, plan.streams)), "declined": _declined(plan)}
    if not plan.streams:
        return Outcome.DECLINED
    with work.timed("verify"):
        verification = verify(made.module, made.args, made.kwargs, config=config)
    checks = [check for check in verification.checks if not check.skipped]
    failed = [one for one in checks if not one.passed]
    work.record["verified"] = {
        "checks": len(checks),
        "skipped": len(verification.checks) - len(checks),
        "max_error": verification.max_error,
    }
    if not verification.passed:
        words = [f"{one.name} ({one.dtype}): {one.error:.1e}, {one.wrong_read}" for one in failed]
        work.record["reason"] = _without_folders("; ".join(words)) or "no check could be made"
        # What stops with its reason gives no number, and so no wrong one.
        return Outcome.REFUSED if failed and all(one.refused for one in failed) else Outcome.WRONG
    return Outcome.PARTIAL if plan.partial else Outcome.REWRITTEN


def called_layers(made: SmallModel) -> dict[str, int]:
    """How often a plain run calls the modules in lists of the model, by their classes; leaves are left out.

    Args:
        made: a model and its inputs.
    """
    calls: Counter[str] = Counter()

    def count(module: nn.Module, *_: Any) -> None:
        calls[f"{type(module).__module__}.{type(module).__qualname__}"] += 1

    listed = {
        id(child): child
        for holder in made.module.modules()
        if isinstance(holder, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
        for child in holder.children()
        if any(True for _ in child.children()) and not isinstance(child, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
    }
    hooks = [module.register_forward_hook(count) for module in listed.values()]
    try:
        with torch.no_grad():
            made.module(*made.args, **made.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(sorted(calls.items()))


def _found(stream: Stream) -> Found:
    at = Counter(short_source(write.source) for write in stream.writes)
    unnormed = sum(not read.normed for read in stream.reads)
    return Found(
        stream.name, stream.width, len(stream.writes), len(stream.reads), unnormed, len(stream.left_out), dict(at)
    )


def _declined(plan: Plan) -> tuple[tuple[str, int, str], ...]:
    longest = sorted(plan.declined, key=lambda one: -one.writes)
    return tuple((one.reason.value, one.writes, short_source(one.source)) for one in longest[:_DECLINES_KEPT])


def _outcome_of(error: Exception) -> Outcome:
    if isinstance(error, NotMadeError):
        return Outcome.NOT_MADE
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return Outcome.LIMIT
    return Outcome.REFUSED if isinstance(error, AttnResError) and not isinstance(error, LevelError) else Outcome.FAULT


def _without_folders(text: str) -> str:
    """A record is read elsewhere: of a file it names what is no folder of this machine."""
    return _FOLDERS.sub("", text)


def _reason(error: Exception, outcome: Outcome) -> str:
    text = error.message if isinstance(error, AttnResError) else str(error)
    words = _without_folders(f"{type(error).__name__}: {' '.join(text.split())}")[:_REASON_LENGTH]
    if outcome is not Outcome.FAULT:
        return words
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}attnres_" in frame.filename] or list(frames)
    return f"{words} [{short_source(ours[-1].filename)}:{ours[-1].lineno}]"
