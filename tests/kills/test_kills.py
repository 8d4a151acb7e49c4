"""A training of a toy is killed a few times; and what judges it finds what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kills.life import Moment, lead
from tests.kills.trial import tried
from tests.kills.ways import Task

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and a process to fork from"),
]


def task(way: str, folder: str = "") -> Task:
    return Task(way, folder, steps=8, every=2)


def test_a_killed_training_loses_no_more_than_an_interval() -> None:
    trial = tried(task("toy"), times=4)
    assert not trial.faults
    assert trial.times == 4
    assert trial.most_lost <= 2
    assert trial.ends >= 1
    assert trial.tensors > 20


def test_a_forgotten_random_state_is_found() -> None:
    """It draws other dropout masks, so that already the first loss differs."""
    trial = tried(task("toy that forgets its random state"), times=4)
    assert len(trial.faults) == 1
    assert "another loss from step" in trial.faults[0]


def test_what_a_process_told(tmp_path: Path) -> None:
    life = lead(task("toy", str(tmp_path)), Moment("saved", 1, 0.0))
    assert life.resumed == 0
    assert life.saved >= 2
    again = lead(task("toy", str(tmp_path)))
    assert again.resumed >= 2
    assert again.phase == "done"
    assert again.saved == 8
