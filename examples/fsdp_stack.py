"""The stack of torchtitan: a checkpoint around each layer, each layer compiled by itself, each sharded.

torchrun --nproc-per-node 2 examples/fsdp_stack.py
"""

import torch
import torch.distributed as dist
from stdlib_bytes import batches, standard_library_bytes
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import attnres_compile

dist.init_process_group("gloo")
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, use_cache=False, **sizes))
data = batches(standard_library_bytes(), rows=4, length=64, seed=dist.get_rank())
plan = attnres_compile.prepare(model, (), {"input_ids": next(data)}, num_blocks=2)  # before anything is wrapped

layers = model.model.layers
for number, layer in enumerate(layers):
    layers[number] = checkpoint_wrapper(layer)
    layers[number].compile(backend="attnres")
    fully_shard(layers[number])
fully_shard(model)

optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=3e-3, weight_decay=0.01))
for step in range(8):
    tokens = next(data)
    logits = model(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    dist.all_reduce(mean := loss.detach() / dist.get_world_size())
    if dist.get_rank() == 0:
        print(f"step {step}: loss {mean:.3f}")
if dist.get_rank() == 0:
    print(attnres_compile.status(model))
dist.destroy_process_group()
