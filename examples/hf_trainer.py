"""The Trainer of transformers: train with checkpoints, resume from one, and load what came out.

python examples/hf_trainer.py
"""

from tempfile import TemporaryDirectory

import torch
from small_llama import byte_rows, parsed, small_llama
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, logging

import attnres_compile

arguments = parsed(__doc__)
logging.disable_progress_bar()
data = [{"input_ids": row, "labels": row} for _, rows in zip(range(50), byte_rows(), strict=False) for row in rows]


def trainer(folder: str) -> Trainer:
    model = small_llama(arguments.layers, attention_dropout=0.1)
    attnres_compile.prepare(model, kwargs={"input_ids": data[0]["input_ids"][None]}, num_blocks=4)
    training = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=4,
        max_steps=arguments.steps,
        save_steps=arguments.steps // 2,
        logging_steps=max(arguments.steps // 6, 1),
        learning_rate=3e-3,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        # torch_compile_backend="attnres" is no choice: accelerate has a closed list of names. The callback compiles.
    )
    callback = attnres_compile.AttnResCallback(options={"inner": arguments.inner})
    # The Trainer's own optimizer would decay the pseudo-queries: it goes by names, and knows norms and biases only.
    optimizers = callback.optimizers(model, training)
    return Trainer(model, training, train_dataset=data, callbacks=[callback], optimizers=optimizers)


with TemporaryDirectory() as folder:
    whole = trainer(folder)
    whole.train()
    for entry in whole.state.log_history:
        if "loss" in entry:
            print(f"step {entry['step']:3d}  loss {entry['loss']:.3f}")

    resumed = trainer(folder)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{arguments.steps // 2}")
    print(attnres_compile.status(resumed.model))
    state, other = whole.model.state_dict(), resumed.model.state_dict()
    differing = [name for name, value in state.items() if not torch.equal(value, other[name])]
    print(f"resumed from the middle: {len(differing)} of {len(state)} tensors differ from the uninterrupted run's")

    # The plain from_pretrained would load the Llama, report the AttnRes parameters as unexpected, and go on.
    loaded = attnres_compile.from_pretrained(f"{folder}/checkpoint-{arguments.steps}", AutoModelForCausalLM)
    differing = [name for name, value in loaded.state_dict().items() if not torch.equal(value, state[name])]
    print(f"loaded from the last checkpoint: {len(differing)} tensors differ")
