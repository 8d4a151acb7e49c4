"""peft: LoRA on a trained AttnRes model, and AttnRes parameters that are trained beside the adapters.

python examples/lora.py
"""

import copy
from tempfile import TemporaryDirectory

import peft
import torch
from small_llama import byte_rows, parsed, small_llama

import attnres_compile

arguments = parsed(__doc__)
OPTIONS = {"inner": arguments.inner}
TARGETS = ["q_proj", "v_proj"]


def train(model, steps: int, seed: int) -> None:
    """The last group of param_groups is left out where the AttnRes parameters are frozen."""
    optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=3e-3, weight_decay=0.0))
    data = byte_rows(seed=seed)
    for step in range(steps):
        rows = next(data)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {loss.item():.3f}")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=next(byte_rows(seed=9))).logits


base = small_llama(arguments.layers, use_cache=False)
attnres_compile.prepare(base, kwargs={"input_ids": next(byte_rows())}, num_blocks=4)
base.compile(backend="attnres", options=OPTIONS)
print("the model itself")
train(base, arguments.steps, seed=0)

print("LoRA alone: peft freezes the AttnRes parameters with all others")
frozen = copy.deepcopy(base)
frozen = peft.get_peft_model(frozen, peft.LoraConfig(r=4, target_modules=TARGETS))
frozen.base_model.model.compile(backend="attnres", options=OPTIONS)  # a copy is not compiled; after peft
train(frozen, arguments.steps // 2, seed=1)

print("LoRA and AttnRes")
tuned = copy.deepcopy(base)
# "attnres" itself would be replaced by a wrapper, which is no module of ours; its streams may be.
saved = [f"attnres.streams.{index}" for index in range(len(tuned.attnres.streams))]
tuned = peft.get_peft_model(tuned, peft.LoraConfig(r=4, target_modules=TARGETS, modules_to_save=saved))
tuned.base_model.model.compile(backend="attnres", options=OPTIONS)
train(tuned, arguments.steps // 2, seed=1)
print(attnres_compile.status(tuned))

with TemporaryDirectory() as folder:
    tuned.save_pretrained(folder)  # the adapters, and the AttnRes parameters among them; not what plan they are of
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)  # prepared, alike: a warning asks
    again.base_model.model.compile(backend="attnres", options=OPTIONS)
    print(f"loaded: largest difference {(logits(again) - logits(tuned)).abs().max().item():.1e}")
    merged = again.merge_and_unload()
    merged.compile(backend="attnres", options=OPTIONS)
    print(f"merged: largest difference {(logits(merged) - logits(tuned)).abs().max().item():.1e}")
    changed = zip(merged.attnres.parameters(), base.attnres.parameters(), strict=True)
    print(f"merged: {sum(not torch.equal(one, other) for one, other in changed)} AttnRes tensors are the tuned ones")
