"""Ways to train and to save, each a process that resumes by itself from the last checkpoint in its folder.

They are those of docs/recipes.md: a plain loop, folders with ``save_pretrained`` and ``attnres_compile.save``, the
Trainer of transformers, Lightning. All draw dropout masks, and so need their random state back.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attnres_compile as ac
from tests.end_to_end.models import VOCABULARY, PreNorm

ROWS, LENGTH = 4, 16
FINAL = "final.pt"


@dataclass(frozen=True)
class Task:
    """What a process is to train; ``every``: steps from one checkpoint to the next."""

    way: str
    folder: str
    steps: int
    every: int
    inner: str = "eager"

    @property
    def path(self) -> Path:
        return Path(self.folder)


@dataclass(frozen=True)
class Report:
    """Tells the process that will kill this one how far it is."""

    connection: Connection

    def __call__(self, kind: str, step: int = 0, note: Any = None) -> None:
        self.connection.send((kind, step, note))


def live(task: Task, connection: Connection) -> None:
    """What the process does: it resumes, trains to the end, and leaves what it would save."""
    report = Report(connection)
    torch.set_num_threads(1)
    try:
        values = WAYS[task.way](task, report)
        torch.save(values, task.path / FINAL)
        report("done")
    except BaseException:
        report("failed", note=traceback.format_exc())


def batch(step: int) -> Tensor:
    """Token ids ``[ROWS, LENGTH]`` of the step of this number: arithmetic sequences, which can be learnt."""
    generator = torch.Generator().manual_seed(step)
    start, stride = torch.randint(VOCABULARY, (2, ROWS, 1), generator=generator)
    return (start + stride * torch.arange(LENGTH)) % VOCABULARY


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, logging

    logging.disable_progress_bar()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = LlamaConfig(**sizes, **ids, max_position_embeddings=LENGTH, attention_dropout=0.1, use_cache=False)
    return LlamaForCausalLM(config)


def toy() -> nn.Module:
    return PreNorm(dropout=0.1)


def prepared(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    ac.prepare(model, (batch(0),), num_blocks=2)
    return model


def compiled(model: nn.Module, task: Task) -> nn.Module:
    model.compile(backend="attnres", options={"inner": task.inner})
    return model.train()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(ac.param_groups(model, lr=3e-3, weight_decay=0.1))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    found = model(ids)
    logits = getattr(found, "logits", found)[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def values_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that training has changed, the random state among it; nothing, if it was killed behind its last save."""
    assert ac.status(model).plain_calls == ac.status(model).refused_calls == 0
    states = optimizer.state_dict()["state"]
    of_optimizer = {f"optimizer {key} {name}": value for key, one in states.items() for name, value in one.items()}
    return {**model.state_dict(), **of_optimizer, "random state": torch.get_rng_state()}


def newest(folder: Path, pattern: str) -> Path | None:
    """The file or folder of the largest number: ``epoch=12.ckpt``, ``checkpoint-12``."""
    number = lambda path: int("".join(filter(str.isdigit, path.name)))  # noqa: E731
    return max(folder.glob(pattern), key=number, default=None)


def loop(task: Task, report: Report, run: tuple[Any, Any, int], save: Callable[[int], None]) -> dict[str, Tensor]:
    """Train ``run``, a model, its optimizer and the steps that are done, and save every so often."""
    model, optimizer, done = run
    report("resumed", done)
    for step in range(done + 1, task.steps + 1):
        loss = loss_of(model, batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report("step", step, loss.item())
        if step % task.every == 0:
            report("saving", step)
            save(step)
            report("saved", step)
    return values_of(model, optimizer)


def one_file(
    task: Task, report: Report, build: Callable[[], nn.Module] = llama, keep_random: bool = True
) -> dict[str, Tensor]:
    """The plain loop: one file with all, renamed once it is whole."""
    model = compiled(prepared(build), task)
    optimizer, path, done = optimizer_of(model), task.path / "checkpoint.pt", 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
        if keep_random:
            torch.set_rng_state(state["random"])

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        temporary = path.with_suffix(".tmp")
        torch.save({**state, "step": step, "random": torch.get_rng_state()}, temporary)
        os.replace(temporary, path)

    return loop(task, report, (model, optimizer, done), save)


def folders(task: Task, report: Report) -> dict[str, Tensor]:
    """A folder for each checkpoint: ``save_pretrained`` with the plan beside it, renamed once it is whole."""
    from transformers import LlamaForCausalLM

    found, done = newest(task.path, "checkpoint-*"), 0
    model = compiled(prepared(llama) if found is None else ac.from_pretrained(found, LlamaForCausalLM), task)
    optimizer = optimizer_of(model)
    if found is not None:
        state = torch.load(found / "training.pt")
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        done = state["step"]

    def save(step: int) -> None:
        temporary = task.path / "temporary"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        ac.save(model, temporary)
        state = {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "step": step}
        torch.save(state, temporary / "training.pt")
        os.rename(temporary, task.path / f"checkpoint-{step}")

    return loop(task, report, (model, optimizer, done), save)


def trainer(task: Task, report: Report) -> dict[str, Tensor]:
    """The Trainer of transformers, which keeps the last two checkpoints, with our callback."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, logging

    logging.set_verbosity_error()

    class Reporting(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Tensor:
            self.last_loss = loss_of(model, inputs["input_ids"])
            return self.last_loss

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            report("saving", self.state.global_step)
            super()._save_checkpoint(*args, **kwargs)

    class Told(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report("resumed", state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report("step", state.global_step, made.last_loss.item())

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report("saved", state.global_step)

    model = prepared(llama)
    arguments = TrainingArguments(
        output_dir=task.folder,
        per_device_train_batch_size=ROWS,
        max_steps=task.steps,
        save_steps=task.every,
        save_total_limit=2,
        learning_rate=3e-3,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = ac.AttnResCallback(options={"inner": task.inner})
    optimizers = callback.optimizers(model, arguments)
    data = [{"input_ids": row, "labels": row} for step in range(task.steps) for row in batch(step)]
    callbacks = [callback, Told()]
    made = Reporting(model, arguments, train_dataset=data, callbacks=callbacks, optimizers=optimizers)
    made.train(resume_from_checkpoint=callback.last_checkpoint(task.folder))
    return values_of(made.model, optimizers[0])


def lightning(task: Task, report: Report) -> dict[str, Tensor]:
    """Lightning: a checkpoint at the end of each epoch, with the random state."""
    from tests.kills.with_lightning import fit

    return fit(task, report)


WAYS: dict[str, Callable[[Task, Report], dict[str, Tensor]]] = {
    "plain loop": one_file,
    "checkpoint folders": folders,
    "Trainer": trainer,
    "Lightning": lightning,
    # For the tests of what judges them.
    "toy": partial(one_file, build=toy),
    "toy that forgets its random state": partial(one_file, build=toy, keep_random=False),
}
