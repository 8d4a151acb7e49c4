"""An exponential moving average of the weights, AttnRes parameters among them, by torch.optim.swa_utils.

python examples/ema.py
"""

import torch
from small_llama import byte_rows, parsed, small_llama
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import attnres_compile

arguments = parsed(__doc__)
data = byte_rows()
options = {"inner": arguments.inner}
model = small_llama(arguments.layers, use_cache=False)
attnres_compile.prepare(model, kwargs={"input_ids": next(data)}, num_blocks=4)
model.compile(backend="attnres", options=options)
optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=3e-3, weight_decay=0.1))

average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
# The average is a copy, and torch copies no compilation: without this line, its first call is a NotInForceError.
average.module.compile(backend="attnres", options=options)

for step in range(arguments.steps):
    rows = next(data)
    loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update_parameters(model)
    if step % 5 == 0 or step == arguments.steps - 1:
        print(f"step {step:3d}  loss {loss.item():.3f}")

held_out = next(byte_rows(rows=32, seed=1))
with torch.no_grad():
    for name, one in (("the model", model.eval()), ("its average", average.eval())):
        print(f"{name}: loss {one(input_ids=held_out, labels=held_out).loss.item():.3f} on other text")

pairs = zip(model.attnres.parameters(), average.module.attnres.parameters(), strict=True)
print(f"the average is another model: {sum(not torch.equal(own, other) for own, other in pairs)} tensors of AttnRes")
print(attnres_compile.status(average))
