"""The Trainer of transformers with our callback: what it trains, saves, and resumes to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import attnres_compile as ac
from attnres_compile.model.errors import NotPreparedError, OptimizerError
from tests.attnres_compile.integrations.llama import VOCABULARY, plain, token_ids

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS = 4
OPTIONS = {"inner": "eager"}


def model_with_dropout() -> Any:
    """So that a resumed run needs its random numbers back as well."""
    torch.manual_seed(3)
    model = plain(attention_dropout=0.2)
    ac.prepare(model, kwargs={"input_ids": token_ids()}, num_blocks=2)
    return model


def data() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, VOCABULARY, (32, 10), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder: Path, **more: Any) -> Any:
    values = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS, "save_steps": 2}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    return transformers.TrainingArguments(
        output_dir=str(folder), learning_rate=1e-2, weight_decay=0.1, **(values | quiet | more)
    )


def trainer(model: Any, folder: Path, **more: Any) -> Any:
    callback, values = ac.AttnResCallback(options=OPTIONS), arguments(folder, **more)
    optimizers = callback.optimizers(model, values)
    return transformers.Trainer(
        model=model, args=values, train_dataset=data(), callbacks=[callback], optimizers=optimizers
    )


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    whole = trainer(model_with_dropout(), tmp_path / "whole")
    whole.train()
    torch._dynamo.reset()
    resumed = trainer(model_with_dropout(), tmp_path / "whole")
    for parameter in resumed.model.parameters():
        torch.nn.init.constant_(parameter, 0.5)  # whatever it begins with, the checkpoint counts
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == STEPS
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert any(read.query.any() for read in whole.model.attnres.streams[0].reads), "the queries were trained"
    state, other = (each.optimizer.state_dict()["state"] for each in (whole, resumed))
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key][name], other[key][name]) for key in state for name in state[key])
    assert ac.status(resumed.model).state == "rewritten"
    assert ac.status(resumed.model).plain_calls == 0

    loaded = ac.from_pretrained(tmp_path / "whole" / "checkpoint-4", transformers.AutoModelForCausalLM)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert (tmp_path / "whole" / "checkpoint-4" / "attnres.json").is_file()


def test_groups(tmp_path: Path) -> None:
    made = trainer(model_with_dropout(), tmp_path, adam_beta2=0.95)
    decays = {group.get("name"): group["weight_decay"] for group in made.optimizer.param_groups}
    assert decays["attnres"] == 0.0
    assert {group["betas"] for group in made.optimizer.param_groups} == {(0.9, 0.95)}
    assert made.model._compiled_call_impl is not None
    (ours,) = [one for one in made.callback_handler.callbacks if isinstance(one, ac.AttnResCallback)]
    assert isinstance(ours, transformers.TrainerCallback)


def test_a_decaying_optimizer_is_refused(tmp_path: Path) -> None:
    """The Trainer's own, which knows norms by their names and takes queries for matrices."""
    model = model_with_dropout()
    callback = ac.AttnResCallback(options=OPTIONS)
    made = transformers.Trainer(model=model, args=arguments(tmp_path), train_dataset=data(), callbacks=[callback])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(OptimizerError, match=r"decays 4 of the 8 AttnRes parameters by 0\.1.*optimizers=callback"):
        made.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_unprepared_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotPreparedError):
        transformers.Trainer(model=plain(), args=arguments(tmp_path), callbacks=[ac.AttnResCallback()])


def test_optimizers_with_groups_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of GaLore, whose package is not here."""
    found = staticmethod(lambda *_: (torch.optim.AdamW, {"params": []}))
    monkeypatch.setattr(transformers.Trainer, "get_optimizer_cls_and_kwargs", found)
    with pytest.raises(OptimizerError, match="makes its own groups of parameters"):
        ac.AttnResCallback().optimizers(model_with_dropout(), arguments(tmp_path))


def test_the_name_of_our_backend_is_not_in_the_list_of_accelerate(tmp_path: Path) -> None:
    """Why there is a callback. Once this fails, the recipe can say so."""
    values = arguments(tmp_path, torch_compile=True, torch_compile_backend="attnres")
    with pytest.raises(ValueError, match="is not a valid DynamoBackend"):
        transformers.Trainer(model=model_with_dropout(), args=values, train_dataset=data()).train()


def test_the_last_whole_checkpoint(tmp_path: Path) -> None:
    """Of a run that was killed while it saved, the newest folder is half a checkpoint."""
    callback = ac.AttnResCallback()
    assert callback.last_checkpoint(tmp_path) is None
    trainer(model_with_dropout(), tmp_path).train()
    whole = str(tmp_path / "checkpoint-4")
    assert callback.last_checkpoint(tmp_path) == whole
    for number, state in ((10, None), (12, '{"global_step": 1')):
        half = tmp_path / f"checkpoint-{number}"
        half.mkdir()
        if state is not None:
            (half / "trainer_state.json").write_text(state)
        assert callback.last_checkpoint(tmp_path) == whole
