"""Kills one training many times over, and judges it by the run that was not killed."""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from tests.kills.life import Life, Moment, TrainingFailedError, lead
from tests.kills.ways import FINAL, Task

IN = {"": "while starting", "resumed": "in a step", "step": "in a step", "saved": "in a step", "saving": "in a save"}
"""Where a process was whose last report is this."""


@dataclass
class Trial:
    """What came of a way of training. ``faults`` is empty if all is well."""

    way: str
    every: int
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(IN.values(), 0))
    most_lost: int = 0
    repeated: int = 0
    """Steps that were made again after a kill, whose losses were compared."""
    ends: int = 0
    """Runs that came to their end, where every tensor was compared."""
    tensors: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def times(self) -> int:
        return sum(self.kills.values())


def tried(task: Task, times: int, seed: int = 0, told: Callable[[Trial], None] = lambda _: None) -> Trial:
    """Kill the training ``times`` times, as often as it takes from its beginning, and let the last run end.

    Args:
        task: whose folder does not count: every run gets one of its own.
        times: kills, in all.
        seed: of the moments.
        told: called after each life.
    """
    trial, chance = Trial(task.way, task.every), random.Random(seed)
    with tempfile.TemporaryDirectory() as parent:
        whole = replace(task, folder=_made(parent, "whole"))
        judge = _Judge(trial, lead(whole), torch.load(whole.path / FINAL))
        while not trial.faults and (trial.times < times or not trial.ends):
            run = replace(task, folder=_made(parent, f"run {trial.ends}"))
            _one_run(run, judge, times, chance, told)
    return trial


def _one_run(task: Task, judge: _Judge, times: int, chance: random.Random, told: Callable[[Trial], None]) -> None:
    """From its beginning to its end, or to a fault."""
    trial, before = judge.trial, None
    while not trial.faults:
        moment = judge.moment(chance) if trial.times < times else None
        try:
            life = lead(task, moment)
        except TrainingFailedError as error:
            trial.faults.append(f"did not go on after {before.phase if before else 'no kill'}: {error}")
            return
        judge.life(life, before)
        told(trial)
        if life.phase == "done":
            judge.end(torch.load(task.path / FINAL))
            return
        trial.kills[IN[life.phase]] += 1
        # One that died before it said where it resumes leaves what is known of the one before.
        before = life if life.resumed is not None else before


class _Judge:
    """Knows the run that was not killed: its losses, its tensors, and how long things take."""

    def __init__(self, trial: Trial, whole: Life, final: dict[str, Tensor]) -> None:
        self.trial, self.losses, self.final = trial, whole.losses, final
        self.starting = next(after for kind, after in whole.times if kind == "resumed")
        self.lasts = {kind: _lasts(whole, kind) for kind in ("step", "saving")}

    def moment(self, chance: random.Random) -> Moment:
        """At random: in one step of those of two intervals, in one save of two, or on the way to the first step."""
        kind = chance.choices(["step", "saving", ""], weights=[9, 9, 2])[0]
        count = chance.randint(1, 2 * self.trial.every if kind == "step" else 2)
        return Moment(kind, count, chance.random() * (self.lasts[kind] if kind else self.starting))

    def life(self, life: Life, before: Life | None) -> None:
        """Where it began, by where the one before it was; and its losses."""
        trial = self.trial
        if life.resumed is not None:
            had, saved = (before.last_step, max(before.saved, before.resumed or 0)) if before else (0, 0)
            lost = had - life.resumed
            trial.most_lost = max(trial.most_lost, lost)
            trial.repeated += sum(step <= had for step in life.losses)
            if lost > trial.every or life.resumed < saved:
                trial.faults.append(f"resumed at step {life.resumed}; step {had} was made and step {saved} saved")
        differing = [step for step, loss in life.losses.items() if loss != self.losses[step]]
        if differing:
            trial.faults.append(f"resumed at step {life.resumed}, another loss from step {differing[0]} on")

    def end(self, values: dict[str, Tensor]) -> None:
        """Every tensor, to the bit."""
        trial = self.trial
        differing = [name for name, value in self.final.items() if not torch.equal(value, values[name])]
        if differing or values.keys() != self.final.keys():
            trial.faults.append(f"{len(differing)} of {len(values)} tensors differ at the end: {differing[:3]}")
        trial.ends += 1
        trial.tensors = len(values)


def _lasts(life: Life, kind: str) -> float:
    """Seconds from a report of this kind to the next report, in the middle."""
    pairs = zip(life.times, life.times[1:], strict=False)
    return statistics.median(after - before for (one, before), (_, after) in pairs if one == kind)


def _made(parent: str, name: str) -> str:
    path = Path(parent, name)
    path.mkdir()
    return str(path)
