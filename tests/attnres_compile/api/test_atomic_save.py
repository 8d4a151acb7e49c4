"""Saves that are killed: what is loaded afterwards is one of the checkpoints that were saved, whole."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import attnres_compile as ac
from attnres_compile.api import atomic_files
from attnres_compile.model.errors import SavedStateError
from attnres_compile.model.plan_tensor import NAME as PLAN
from tests.attnres_compile.api.plans import SAVED, prepared
from tests.end_to_end.models import PreNorm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

OLD, NEW = 1.0, 2.0
OPTIONS: dict[float, dict[str, Any]] = {OLD: {"block_size": 2}, NEW: SAVED}
FILES = ["attnres.json", "attnres.safetensors"]


def filled(value: float) -> PreNorm:
    """A model whose values tell its plan: parameters of the two plans have the same names and shapes."""
    model = prepared(**OPTIONS[value])
    with torch.no_grad():
        for parameter in model.attnres.parameters():
            parameter.fill_(value)
    return model


def loaded(folder: Path) -> float:
    """The value of the checkpoint in ``folder``, which is of one save."""
    model = PreNorm()
    plan = ac.load(model, folder)
    (value,) = {float(one) for parameter in model.attnres.parameters() for one in parameter.detach().unique()}
    assert plan.streams == prepared(**OPTIONS[value]).attnres.plan.streams
    assert plan.config.scale == OPTIONS[value].get("scale", "mean")
    return value


def in_child(run: Callable[[], None]) -> int:
    """The id of a process that runs ``run`` and ends."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    return child


def save_until(kill_at: int, model: PreNorm, folder: Path, before: bool) -> None:
    """Save, and be killed at a step of it, counted over all calls that change something on the disk."""
    steps = 0

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == kill_at and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return step

    os.replace, os.fsync, os.open = killing(os.replace), killing(os.fsync), killing(os.open)
    Path.open, Path.unlink = killing(Path.open), killing(Path.unlink)  # type: ignore[method-assign]
    ac.save(model, folder)


@pytest.mark.filterwarnings("ignore:attnres. .* is not of the save:UserWarning")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("first", ["saved", "0.1.0", "nothing"])
def test_killed_at_every_step(tmp_path: Path, first: str, before: bool) -> None:
    new, results = filled(NEW), []
    for kill_at in range(1, 40):
        folder = tmp_path / str(kill_at)
        if first == "saved":
            ac.save(filled(OLD), folder)
        elif first == "0.1.0":
            save_as_version_0_1_0(filled(OLD), folder)
        child = in_child(lambda: save_until(kill_at, new, folder, before))  # noqa: B023
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        if (folder / "attnres.safetensors").exists():
            results.append(loaded(folder))
        else:
            with pytest.raises(SavedStateError, match=r"holds no|is not there"):
                loaded(folder)
            results.append(0.0)
        # And the next save is as if nothing had happened.
        ac.save(new, folder)
        assert loaded(folder) == NEW
        assert sorted(path.name for path in folder.iterdir()) == FILES
    else:
        pytest.fail("no save came to its end")
    assert results == sorted(results), "old first, then new"
    assert set(results) == {0.0 if first == "nothing" else OLD, NEW}
    assert len(results) > 8


@pytest.mark.filterwarnings("ignore:attnres. .* is not of the save:UserWarning")
def test_killed_at_any_time(tmp_path: Path) -> None:
    """A process saves two checkpoints in turn until it is killed."""
    models = [filled(OLD), filled(NEW)]
    ac.save(models[0], tmp_path)

    chance, values, left = random.Random(0), [], 0
    for turn in range(50):
        reader, writer = os.pipe()

        def save_for_ever(first: int = turn % 2, started: int = writer) -> None:
            ac.save(models[first], tmp_path)
            os.write(started, b".")
            for index in itertools.count(first + 1):
                ac.save(models[index % 2], tmp_path)

        child = in_child(save_for_ever)
        os.read(reader, 1)
        time.sleep(0.02 * chance.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        os.close(reader)
        os.close(writer)
        left += len(list(tmp_path.iterdir())) - len(FILES)
        values.append(loaded(tmp_path))
    assert set(values) == {OLD, NEW}
    assert left, "no save was killed in the middle"
    ac.save(models[1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.filterwarnings("ignore:attnres. .* is not of the save:UserWarning")
def test_read_while_another_process_saves(tmp_path: Path) -> None:
    models = [filled(OLD), filled(NEW)]
    ac.save(models[0], tmp_path)

    def save_often() -> None:
        for _ in range(100):
            for model in models:
                ac.save(model, tmp_path)

    children = [in_child(save_often) for _ in range(2)]
    values = {loaded(tmp_path) for _ in range(40)}
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert values == {OLD, NEW}


def save_as_version_0_1_0(model: PreNorm, folder: Path) -> None:
    folder.mkdir()
    (folder / "attnres.json").write_text(json.dumps(model.attnres.plan.to_dict(), indent=1) + "\n")
    state = model.attnres.state_dict()
    save_file({name: value for name, value in state.items() if name != PLAN}, folder / "attnres.safetensors")


def test_files_of_two_saves_are_not_mixed(tmp_path: Path) -> None:
    old, new, mixed = (tmp_path / name for name in ("old", "new", "mixed"))
    ac.save(filled(OLD), old)
    ac.save(filled(NEW), new)
    mixed.mkdir()
    (mixed / "attnres.json").write_bytes((old / "attnres.json").read_bytes())
    (mixed / "attnres.safetensors").write_bytes((new / "attnres.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="attnres.json is not of the save"):
        assert loaded(mixed) == NEW
    (mixed / "attnres.json").unlink()
    assert loaded(mixed) == NEW

    save_as_version_0_1_0(filled(OLD), tmp_path / "0.1.0")
    assert loaded(tmp_path / "0.1.0") == OLD
    (tmp_path / "0.1.0" / "attnres.json").write_bytes((new / "attnres.json").read_bytes())
    with pytest.raises(SavedStateError, match=r"does not say which plan it belongs to.*of another save"):
        loaded(tmp_path / "0.1.0")
    (tmp_path / "0.1.0" / "attnres.json").unlink()
    with pytest.raises(SavedStateError, match=r"does not say which plan it belongs to.*missing"):
        loaded(tmp_path / "0.1.0")


def test_only_what_killed_saves_left_is_removed(tmp_path: Path) -> None:
    child = in_child(lambda: None)
    os.waitpid(child, 0)
    host, long_ago = socket.gethostname(), time.time() - 2 * 24 * 60 * 60

    def temporary(host: str, pid: int, process: str) -> Path:
        path = tmp_path / f".attnres.json.{host}.{pid}.{process}.0123abcd.tmp"
        path.write_text("half")
        return path

    kept = [
        temporary(host, os.getppid(), "01234567"),
        temporary(host, os.getpid(), atomic_files._PROCESS),
        temporary("other.host", child, "01234567"),
        tmp_path / ".attnres.notes.tmp",
        tmp_path / "model.safetensors",
    ]
    for path in kept[-2:]:
        path.write_text("of the user")
    removed = [
        temporary(host, child, "01234567"),
        temporary(host, os.getpid(), "76543210"),
        temporary("another.host", child, "01234567"),
    ]
    os.utime(removed[-1], (long_ago, long_ago))
    ac.save(filled(NEW), tmp_path)
    assert not [path for path in removed if path.exists()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES + [path.name for path in kept])


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ac.save(filled(OLD), tmp_path)

    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, no_room)
        with pytest.raises(SavedStateError, match=r"cannot be written \(.*No space left"):
            ac.save(filled(NEW), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert loaded(tmp_path) == OLD
