"""The way that needs Lightning, which ``ways`` imports when it is used."""

from __future__ import annotations

from typing import Any

import pytorch_lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from tests.kills.ways import (
    ROWS,
    Report,
    Task,
    batch,
    compiled,
    llama,
    loss_of,
    newest,
    optimizer_of,
    prepared,
    values_of,
)


def fit(task: Task, report: Report) -> dict[str, Tensor]:
    """Train and save; what training has changed."""
    keep = ModelCheckpoint(task.folder, filename="{epoch}", save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pytorch_lightning.Trainer(
        max_epochs=task.steps // task.every, accelerator="cpu", default_root_dir=task.folder, callbacks=[keep], **quiet
    )
    module = Module(task, report)
    data = torch.utils.data.DataLoader(torch.cat([batch(step) for step in range(task.every)]), batch_size=ROWS)
    trainer.fit(module, data, ckpt_path=newest(task.path, "epoch=*.ckpt"))
    return values_of(module.model, trainer.optimizers[0])


class Module(pytorch_lightning.LightningModule):
    """As in examples/lightning_fit.py, telling how far it is."""

    def __init__(self, task: Task, report: Report) -> None:
        super().__init__()
        self.task, self.report = task, report

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = compiled(prepared(llama), self.task)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.model)

    def training_step(self, ids: Tensor, index: int) -> Tensor:
        return loss_of(self.model, ids)

    def on_train_start(self) -> None:
        self.report("resumed", self.global_step)

    def on_train_batch_end(self, outputs: Any, ids: Tensor, index: int) -> None:
        self.report("step", self.global_step, outputs["loss"].item())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.report("saving", self.global_step)
        checkpoint["random"] = torch.get_rng_state()

    def on_train_epoch_start(self) -> None:
        """The first thing behind the writing of a checkpoint."""
        if self.global_step:
            self.report("saved", self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["random"])
