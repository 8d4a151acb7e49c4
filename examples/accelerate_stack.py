"""The stack of transformers and accelerate: gradient checkpointing, the whole model compiled, data-parallel.

torchrun --nproc-per-node 2 examples/accelerate_stack.py
"""

import torch
from accelerate import Accelerator
from stdlib_bytes import batches, standard_library_bytes
from transformers import LlamaConfig, LlamaForCausalLM

import attnres_compile

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, use_cache=False, **sizes))
data = batches(standard_library_bytes(), rows=4, length=64, seed=accelerator.process_index)
attnres_compile.prepare(model, (), {"input_ids": next(data)}, num_blocks=2)  # before accelerate wraps it

model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.compile(backend="attnres")
optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=3e-3, weight_decay=0.01))
wrapped, optimizer = accelerator.prepare(model, optimizer)

for step in range(8):
    tokens = next(data)
    logits = wrapped(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    accelerator.print(f"step {step}: loss {accelerator.reduce(loss.detach(), 'mean'):.3f}")
accelerator.print(attnres_compile.status(model))
accelerator.end_training()
