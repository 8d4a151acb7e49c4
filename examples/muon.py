"""Muon for the matrices of the layers, AdamW for all the rest: embeddings, vectors, queries and key norms.

python examples/muon.py
"""

import torch
from small_llama import byte_rows, parsed, small_llama

import attnres_compile

arguments = parsed(__doc__)
data = byte_rows()
model = small_llama(arguments.layers, use_cache=False)
attnres_compile.prepare(model, kwargs={"input_ids": next(data)}, num_blocks=4)
model.compile(backend="attnres", options={"inner": arguments.inner})

matrices, others = attnres_compile.param_groups(model, lr=3e-3, weight_decay=0.1, muon=True)
# Under this adjustment both take one learning rate, and one schedule of it.
muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
adamw = torch.optim.AdamW(others, betas=(0.9, 0.95))
optimizers = (adamw, muon)  # first the one that holds the AttnRes parameters
schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, arguments.steps) for each in optimizers]
for name, optimizer in (("Muon", muon), ("AdamW", adamw)):
    count = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    print(f"{name}: {count:,} parameters")

for step in range(arguments.steps):
    rows = next(data)
    loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    for each in (*optimizers, *schedules):
        each.step()
    for optimizer in optimizers:
        optimizer.zero_grad()
    if step % 5 == 0 or step == arguments.steps - 1:
        print(f"step {step:3d}  loss {loss.item():.3f}")

queries = [read.query for read in model.attnres.streams[0].reads]
print(f"largest entry of a query: {max(query.abs().max().item() for query in queries):.4f}")
print(attnres_compile.status(model))
