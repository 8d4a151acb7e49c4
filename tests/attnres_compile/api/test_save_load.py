"""Saved AttnRes parameters come back, strictly, and nothing else of the model is touched."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import attnres_compile as ac
from attnres_compile.capture.weightless import weightless_copy
from attnres_compile.model.errors import NotPreparedError, SavedStateError
from attnres_compile.model.plan_tensor import check_plan_tensor
from tests.attnres_compile.api.plans import OTHERS, SAVED, assert_equal, prepared, values_of
from tests.end_to_end.models import PreNorm, randomize, tokens

QUERY = "streams.0.reads.0.query"


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


@pytest.mark.parametrize(("options", "message"), OTHERS)
def test_another_plan_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    ac.save(prepared(**SAVED), tmp_path)
    other = prepared(1, **options)
    before = values_of(other)
    with pytest.raises(SavedStateError, match=message) as caught:
        ac.load(other, tmp_path)
    assert "prepare it with block_size=1, scale='sum', eps=1e-06" in str(caught.value)
    assert_equal(values_of(other), before)
    ac.unprepare(other)
    assert ac.load(other, tmp_path).config.scale == "sum"


def test_the_tensors_alone_are_enough(saved: tuple[PreNorm, Path]) -> None:
    """attnres.json is for people and other programs."""
    model, folder = saved
    (folder / "attnres.json").unlink()
    other = PreNorm()
    assert ac.load(other, folder) == model.attnres.plan
    assert_equal(values_of(other.attnres), values_of(model.attnres))


def test_two_saves_of_one_model_are_equal(saved: tuple[PreNorm, Path], tmp_path: Path) -> None:
    model, folder = saved
    ac.save(model, tmp_path / "again")
    for name in ("attnres.json", "attnres.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert json.loads((folder / "attnres.json").read_text())["config"]["num_blocks"] == 2


def changed_plan(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "attnres.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))


def changed_bytes(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "attnres.safetensors"
    path.write_bytes(change(path.read_bytes()))


def changed_tensor(folder: Path, change: Callable[[Tensor], Tensor], name: str = QUERY) -> None:
    """By a program that keeps the tensors alone: the metadata are lost."""
    path = folder / "attnres.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


def unreadable(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated header": (lambda d: changed_bytes(d, lambda b: b[:20]), "truncated or is no safetensors file"),
    "truncated data": (lambda d: changed_bytes(d, lambda b: b[:-8]), "truncated or is no safetensors file"),
    "empty": (lambda d: changed_bytes(d, lambda b: b""), "truncated or is no safetensors file"),
    "no safetensors": (lambda d: changed_bytes(d, lambda b: b"\x80pickle" * 99), "truncated or is no safetensors file"),
    "a broken plan": (
        lambda d: changed_bytes(d, lambda b: b.replace(rb'"{\"digest', rb'"[\"digest', 1)),
        "truncated or is no safetensors file",
    ),
    "another plan in the header": (
        lambda d: changed_bytes(d, lambda b: b.replace(rb"\"scale\": \"mean\"", rb"\"scale\": \"sum\" ", 1)),
        "damaged: its digest",
    ),
    "a flipped bit": (lambda d: changed_bytes(d, flipped), "damaged: its digest"),
    "bad JSON": (lambda d: (d / "attnres.json").write_text("{"), "not a saved plan"),
    "JSON of no text": (lambda d: (d / "attnres.json").write_bytes(b"\xff\xfe\x00"), "not a saved plan"),
    "JSON of a list": (lambda d: (d / "attnres.json").write_text("[]"), "not a saved plan"),
    "a negative width": (lambda d: changed_plan(d, lambda p: p["streams"][0].update(width=-1)), "width=-1 of stream 0"),
    "a width of text": (lambda d: changed_plan(d, lambda p: p["streams"][0].update(width="16")), "width='16' of str"),
    "no streams": (lambda d: changed_plan(d, lambda p: p.pop("streams")), "'streams' is missing"),
    "streams of text": (lambda d: changed_plan(d, lambda p: p.update(streams="x")), "not a saved plan"),
    "another scale": (lambda d: changed_plan(d, lambda p: p["config"].update(scale="sum")), "was changed after"),
    "no scale": (lambda d: changed_plan(d, lambda p: p["config"].update(scale="max")), "scale='max' is not one of"),
    "a newer schema": (lambda d: changed_plan(d, lambda p: p.update(schema_version=2)), "schema_version 2, and this"),
    "no schema": (lambda d: changed_plan(d, lambda p: p.pop("schema_version")), "schema_version None, and this"),
    "no tensors": (lambda d: (d / "attnres.safetensors").unlink(), "holds no attnres.safetensors"),
    "a folder for tensors": (lambda d: unreadable(d, "attnres.safetensors"), "holds no attnres.safetensors"),
    "a folder for the plan": (lambda d: unreadable(d, "attnres.json"), "holds no attnres.json"),
    "integers": (lambda d: changed_tensor(d, Tensor.int), "torch.int32, and parameters are floating"),
    "complex": (lambda d: changed_tensor(d, lambda t: t.to(torch.complex64)), "torch.complex64, and parameters are"),
    "NaN": (lambda d: changed_tensor(d, lambda t: t.fill_(math.nan)), "holds NaN or infinity"),
    "one NaN": (
        lambda d: changed_tensor(d, lambda t: t.index_fill_(0, torch.tensor([1]), math.nan)),
        "holds NaN or inf",
    ),
    "infinity": (lambda d: changed_tensor(d, lambda t: t.fill_(-math.inf).half()), "holds NaN or infinity"),
    "too large": (lambda d: changed_tensor(d, lambda t: t.double().fill_(1e300)), "too large for torch.float32"),
    "a shape": (lambda d: changed_tensor(d, lambda t: t[:8].clone()), "of another shape"),
    "another plan": (lambda d: changed_tensor(d, lambda t: t.fill_(8.0), "plan_tensor"), "of version 0, and this"),
    "mixed plans": (
        lambda d: changed_tensor(d, lambda t: prepared(block_size=1).attnres.plan_tensor, "plan_tensor"),
        r"block_size 1 \(num_blocks 3\) was saved",
    ),
}


@pytest.mark.parametrize("is_prepared", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_error_and_the_model_is_as_it_was(
    saved: tuple[PreNorm, Path], damage: str, is_prepared: bool
) -> None:
    _, folder = saved
    hurt, message = DAMAGE[damage]
    hurt(folder)
    other = prepared(1, num_blocks=2) if is_prepared else PreNorm()
    before, attributes = values_of(other), {name: set(module.__dict__) for name, module in other.named_modules()}
    with pytest.raises(SavedStateError, match=message):
        ac.load(other, folder)
    assert_equal(values_of(other), before)
    assert {name: set(module.__dict__) for name, module in other.named_modules()} == attributes
    assert len(other._load_state_dict_pre_hooks) == is_prepared


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_floating_dtype_is_cast(saved: tuple[PreNorm, Path], dtype: torch.dtype) -> None:
    model, folder = saved
    path = folder / "attnres.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path)
    other = PreNorm()
    ac.load(other, folder)
    expected = model.attnres.state_dict()[QUERY].to(dtype).float()
    assert torch.equal(other.attnres.state_dict()[QUERY], expected)
    half = PreNorm().half()
    ac.load(half, folder)
    assert half.attnres.state_dict()[QUERY].dtype == torch.float16


def test_weights_that_came_in_place_are_replaced(saved: tuple[PreNorm, Path]) -> None:
    _, folder = saved
    model = prepared(num_blocks=2)
    with torch.no_grad():
        model.attnres.plan_tensor.copy_(prepared(**SAVED).attnres.plan_tensor)
    with pytest.raises(SavedStateError, match="in place"):
        check_plan_tensor(model.attnres)
    ac.load(model, folder)
    check_plan_tensor(model.attnres)


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(**SAVED)
    (tmp_path / "file").write_text("a user's")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SavedStateError, match="cannot be written"):
            ac.save(model, place)
        with pytest.raises(SavedStateError, match=r"is a file|is not there"):
            ac.load(PreNorm(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a user's"
    with pytest.raises(SavedStateError, match="is not there"):
        ac.load(PreNorm(), tmp_path / "nothing")
    with pytest.raises(SavedStateError, match="on the meta device and has no data"):
        ac.save(weightless_copy(model), tmp_path / "meta")
    assert not (tmp_path / "meta").exists()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SavedStateError, match=r"cannot be written \(.*Permission denied"):
        ac.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_no_saved_directory(tmp_path: Path) -> None:
    with pytest.raises(NotPreparedError, match="prepare"):
        ac.save(PreNorm(), tmp_path)
    with pytest.raises(SavedStateError, match=r"holds no attnres\.json"):
        ac.load(PreNorm(), tmp_path)
    (tmp_path / "attnres.json").write_text("{")
    with pytest.raises(SavedStateError, match="not a saved plan"):
        ac.load(PreNorm(), tmp_path)
