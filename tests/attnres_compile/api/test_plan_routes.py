"""The plan goes by every route that saved weights take: another plan's are refused, the same plan's load."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel

import attnres_compile as ac
from attnres_compile.model.errors import SavedStateError
from attnres_compile.model.plan_tensor import check_plan_tensor
from tests.attnres_compile.api.plans import OTHERS, SAVED, assert_equal, one_process, prepared, values_of

PLAN = "attnres.plan_tensor"


def by_strict(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    model.load_state_dict(saved.state_dict())


def by_not_strict(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    model.load_state_dict(saved.state_dict(), strict=False)


def by_assign(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    model.load_state_dict(values_of(saved), assign=True)


def by_torch_file(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    torch.save(saved.state_dict(), folder / "model.pt")
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))


def by_safetensors(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    save_file(saved.state_dict(), folder / "model.safetensors")
    model.load_state_dict(load_file(folder / "model.safetensors"))


def by_parameters_alone(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    model.attnres.load_state_dict(saved.attnres.state_dict())
    model.load_state_dict(saved.state_dict())


def by_compiled_wrapper(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    wrapped = [torch.compile(one, backend="attnres", options={"inner": "eager"}) for one in (saved, model)]
    wrapped[1].load_state_dict(wrapped[0].state_dict())


def by_outer_module(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    nn.ModuleDict({"policy": model}).load_state_dict(nn.ModuleDict({"policy": saved}).state_dict())


def by_average(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    averaged = AveragedModel(model)
    averaged.load_state_dict(AveragedModel(saved).state_dict())
    by_strict(averaged.module, model, folder)


def by_distributed_state_dict(saved: nn.Module, model: nn.Module, folder: Path) -> None:
    set_model_state_dict(model, get_model_state_dict(saved, options=StateDictOptions(full_state_dict=True)))


ROUTES = [
    *(by_strict, by_not_strict, by_assign, by_torch_file, by_safetensors, by_parameters_alone),
    *(by_compiled_wrapper, by_outer_module, by_average, by_distributed_state_dict),
]
Route = Callable[[nn.Module, nn.Module, Path], None]


@pytest.mark.parametrize("route", ROUTES)
def test_the_same_plan_loads(route: Route, tmp_path: Path) -> None:
    saved, model = prepared(**SAVED), prepared(1, **SAVED)
    route(saved, model, tmp_path)
    assert_equal(values_of(model), values_of(saved))
    check_plan_tensor(model.attnres)


@pytest.mark.parametrize(("options", "message"), OTHERS)
@pytest.mark.parametrize("route", ROUTES)
def test_another_plan_is_refused_and_nothing_is_loaded(
    route: Route, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved, model = prepared(**SAVED), prepared(1, **options)
    before = values_of(model)
    with pytest.raises(SavedStateError, match=message) as caught:
        route(saved, model, tmp_path)
    assert "prepare(model, .., block_size=1, scale='sum', eps=1e-06)" in str(caught.value)
    assert_equal(values_of(model), before)
    check_plan_tensor(model.attnres)


def test_the_same_plan_by_other_options_loads() -> None:
    """What counts is what the blocks are, not how they were asked for."""
    saved = prepared(num_blocks=2, schedule="naive", inner="eager", allow_unnormed=True)
    model = prepared(1, block_size=2)
    model.load_state_dict(saved.state_dict())
    assert_equal(values_of(model), values_of(saved))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_state_dict_in_another_dtype(dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in prepared(**SAVED).state_dict().items()}
    prepared(1, **SAVED).load_state_dict(state)
    with pytest.raises(SavedStateError, match="scale='sum' was saved"):
        prepared(1, block_size=1).load_state_dict(state)


@pytest.mark.parametrize(("options", "message"), OTHERS)
def test_distributed_checkpoint(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """It loads into the tensors of the model, in place, before anything can be compared."""
    saved = prepared(**SAVED)
    dcp.save(saved.state_dict(), checkpoint_id=tmp_path, no_dist=True)
    model = prepared(1, **options)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(SavedStateError, match=rf"overwritten before\): .*{message}"):
        model.load_state_dict(state)
    with pytest.raises(SavedStateError, match=rf"overwritten in place with those of another plan: .*{message}"):
        check_plan_tensor(model.attnres)
    with pytest.raises(SavedStateError, match=message):
        ac.save(model, tmp_path / "own")
    # Nothing but weights of its own plan makes it right.
    with pytest.raises(SavedStateError, match=message):
        check_plan_tensor(model.double().to("cpu").attnres)
    right = prepared(2, **options)
    model.float().load_state_dict(right.state_dict())
    check_plan_tensor(model.attnres)

    same = prepared(1, **SAVED)
    state = same.state_dict()
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    same.load_state_dict(state)
    assert_equal(values_of(same), values_of(saved))
    check_plan_tensor(same.attnres)


def test_a_copy_in_place_is_found() -> None:
    saved, model = prepared(**SAVED), prepared(block_size=1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(saved.state_dict()[name])
    with pytest.raises(SavedStateError, match="scale='sum' was saved, this model has scale='mean'"):
        check_plan_tensor(model.attnres)


def gpt2(**options: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"vocab_size": 31, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, **ids)).eval()
    ac.prepare(model, (torch.arange(6)[None],), **options)
    for parameter in model.attnres.parameters():
        nn.init.normal_(parameter)
    return model


def test_transformers(tmp_path: Path) -> None:
    """``save_pretrained`` leaves out the tied head, so that its file is loaded without strict."""
    saved = gpt2(**SAVED)
    saved.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert PLAN in state
    same = gpt2(**SAVED)
    assert same.load_state_dict(state, strict=False).unexpected_keys == []
    assert_equal(values_of(same), values_of(saved))
    for options, message in OTHERS:
        if "block_size 1" in message:
            message = r"block_size 1 \(num_blocks 4\)"
        with pytest.raises(SavedStateError, match=message):
            gpt2(**options).load_state_dict(state, strict=False)


def test_resuming_a_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    gpt2(**SAVED).save_pretrained(tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True)
    Trainer(gpt2(**SAVED), arguments)._load_from_checkpoint(str(tmp_path))
    with pytest.raises(SavedStateError, match=re.escape("scale='sum' was saved")):
        Trainer(gpt2(block_size=1), arguments)._load_from_checkpoint(str(tmp_path))


def test_sharded_by_fsdp2(tmp_path: Path) -> None:
    with one_process():
        mesh = init_device_mesh("cpu", (1,))
        saved, same, other = prepared(**SAVED), prepared(1, **SAVED), prepared(1, block_size=1)
        expected = values_of(saved)
        for model in (saved, same, other):
            fully_shard(model, mesh=mesh)
        state = get_model_state_dict(saved, options=StateDictOptions(full_state_dict=True))
        assert_equal(dict(state), expected)
        set_model_state_dict(same, state, options=StateDictOptions(full_state_dict=True))
        with pytest.raises(SavedStateError, match="scale='sum' was saved"):
            set_model_state_dict(other, state, options=StateDictOptions(full_state_dict=True))
        with pytest.raises(SavedStateError, match="scale='sum' was saved"):
            other.load_state_dict(saved.state_dict())
        check_plan_tensor(other.attnres)

        ac.save(saved, tmp_path)
        with torch.no_grad():
            for parameter in same.attnres.parameters():
                parameter.zero_()
        ac.load(same, tmp_path)
        assert_equal(
            dict(get_model_state_dict(same, options=StateDictOptions(full_state_dict=True))),
            expected,
        )


def test_below_ddp() -> None:
    with one_process():
        model = prepared(**SAVED)
        wrapped = nn.parallel.DistributedDataParallel(model)
        same = nn.parallel.DistributedDataParallel(prepared(1, **SAVED))
        same.load_state_dict(wrapped.state_dict())
        assert_equal(values_of(same.module), values_of(model))
        other = nn.parallel.DistributedDataParallel(prepared(1, block_size=1))
        with pytest.raises(SavedStateError, match="scale='sum' was saved"):
            other.load_state_dict(wrapped.state_dict())
