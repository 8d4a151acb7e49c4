"""A loop of one's own with accelerate: bf16, gradient accumulation, clipping, save_state and load_state.

python examples/accelerate_loop.py      # examples/accelerate_stack.py runs on several processes
"""

from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from small_llama import byte_rows, parsed, small_llama

import attnres_compile

arguments = parsed(__doc__)
# No dynamo_backend="attnres": accelerate takes names of a closed list only. The model is compiled in place instead.
accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
data = byte_rows()

model = small_llama(arguments.layers, use_cache=False)
attnres_compile.prepare(model, kwargs={"input_ids": next(data)}, num_blocks=4)  # before the optimizer and accelerate
model.compile(backend="attnres", options={"inner": arguments.inner})
optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=3e-3, weight_decay=0.1))
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.3, 1.0, total_iters=5)
model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)


def train(steps: int, batches) -> float:
    for step in range(2 * steps):
        rows = next(batches)
        with accelerator.accumulate(model):
            loss = model(input_ids=rows, labels=rows).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 10 == 1:
            accelerator.print(f"step {step // 2:3d}  loss {loss.item():.3f}")
    return loss.item()


train(arguments.steps, data)
with TemporaryDirectory() as folder:
    # Weights, AttnRes parameters among them, with their plan; the optimizer, the schedule, the random state.
    accelerator.save_state(folder)
    first = train(2, byte_rows(seed=7))
    accelerator.load_state(folder)
    again = train(2, byte_rows(seed=7))
    accelerator.print(f"from the saved state, twice: losses {first:.6f} and {again:.6f}")
    accelerator.print(attnres_compile.status(accelerator.unwrap_model(model)))
accelerator.end_training()
