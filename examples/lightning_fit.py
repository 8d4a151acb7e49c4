"""Lightning: the model is prepared and compiled in configure_model, checkpoints hold it, and a fit resumes.

python examples/lightning_fit.py
"""

from tempfile import TemporaryDirectory

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small_llama import byte_rows, parsed, small_llama

import attnres_compile

arguments = parsed(__doc__)
per_epoch = arguments.steps // 2
rows = torch.cat([rows for _, rows in zip(range(per_epoch), byte_rows(), strict=False)])


class AttnResLlama(lightning.LightningModule):
    def configure_model(self) -> None:
        """Lightning calls it before it makes the optimizer and before a strategy wraps anything, and once more on load.

        torch.compile(module, backend="attnres") of the LightningModule around a prepared model works as well, under the
        strategies that Lightning takes a compiled module for. Around a model that is not prepared it comes too late:
        the first step would register parameters that the optimizer does not hold, and the optimizer says so.
        """
        if hasattr(self, "model"):
            return
        self.model = small_llama(arguments.layers, attention_dropout=0.1, use_cache=False)
        attnres_compile.prepare(self.model, kwargs={"input_ids": rows[:1]}, num_blocks=4)
        self.model.compile(backend="attnres", options={"inner": arguments.inner})

    def training_step(self, batch, index):
        loss = self.model(input_ids=batch, labels=batch).loss
        if self.global_step % 5 == 0:
            print(f"step {self.global_step:3d}  loss {loss.item():.3f}")
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(attnres_compile.param_groups(self.model, lr=3e-3, weight_decay=0.1))

    # Lightning keeps weights and optimizers, not the random state, which dropout needs to go on as it was.
    def on_save_checkpoint(self, checkpoint):
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint):
        torch.set_rng_state(checkpoint["random"])


def fit(folder: str, checkpoint: str | None = None) -> AttnResLlama:
    lightning.seed_everything(0, verbose=False)
    # At the end of an epoch: a plain DataLoader cannot go on in the middle of one.
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[keep],
    )
    module = AttnResLlama()
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4), ckpt_path=checkpoint)
    return module


with TemporaryDirectory() as folder:
    whole = fit(folder)
    print(attnres_compile.status(whole.model))
    resumed = fit(folder, f"{folder}/epoch=0.ckpt")
    state, other = whole.state_dict(), resumed.state_dict()
    differing = [name for name, value in state.items() if not torch.equal(value, other[name])]
    print(
        f"resumed behind the first epoch: {len(differing)} of {len(state)} tensors differ from the uninterrupted run's"
    )
