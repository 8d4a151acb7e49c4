"""Saved AttnRes parameters come back, strictly, and nothing else of the model is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import attnres_compile as ac
from attnres_compile.model.errors import NotPreparedError, SavedStateError
from tests.end_to_end.models import PreNorm, randomize, tokens


@pytest.fixture
def saved(tmp_path: Path) -> tuple[PreNorm, Path]:
    model = PreNorm()
    ac.prepare(model, (tokens(),), num_blocks=2)
    randomize(model)
    ac.save(model, tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("prepared", [True, False])
def test_round_trip(saved: tuple[PreNorm, Path], prepared: bool) -> None:
    model, folder = saved
    other = PreNorm()
    head = other.head.weight.clone()
    if prepared:
        ac.prepare(other, (tokens(),), num_blocks=2)
    plan = ac.load(other, folder)
    assert plan.streams == model.attnres.plan.streams
    for name, value in model.attnres.state_dict().items():
        assert torch.equal(other.attnres.state_dict()[name], value)
    assert torch.equal(other.head.weight, head)
    assert sorted(path.name for path in folder.iterdir()) == ["attnres.json", "attnres.safetensors"]
    other.compile(backend="attnres", options={"inner": "eager"})
    other(tokens())


def test_other_blocks_are_refused(saved: tuple[PreNorm, Path]) -> None:
    _, folder = saved
    other = PreNorm()
    ac.prepare(other, (tokens(),), num_blocks=3)
    with pytest.raises(SavedStateError, match="other streams, reads or blocks"):
        ac.load(other, folder)
    assert not any(read.query.any() for read in other.attnres.streams[0].reads)


def test_missing_parts_are_refused_and_the_model_is_as_it_was(saved: tuple[PreNorm, Path]) -> None:
    _, folder = saved
    plan = json.loads((folder / "attnres.json").read_text())
    plan["streams"][0]["width"] = 8
    (folder / "attnres.json").write_text(json.dumps(plan))
    other = PreNorm()
    with pytest.raises(SavedStateError, match=r"streams\.0\.reads\.0\.query"):
        ac.load(other, folder)
    assert not hasattr(other, "attnres")


def test_what_is_no_saved_directory(tmp_path: Path) -> None:
    with pytest.raises(NotPreparedError, match="prepare"):
        ac.save(PreNorm(), tmp_path)
    with pytest.raises(SavedStateError, match=r"holds no attnres\.json"):
        ac.load(PreNorm(), tmp_path)
    (tmp_path / "attnres.json").write_text("{")
    with pytest.raises(SavedStateError, match="not a saved plan"):
        ac.load(PreNorm(), tmp_path)
