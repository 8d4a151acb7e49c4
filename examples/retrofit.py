"""A trained plain model goes on as it is, and converted to AttnRes: unchanged at first, and which is better in the end?

python examples/retrofit.py
"""

import copy
import itertools
import statistics

import torch
from small_llama import parsed, small_llama
from stdlib_bytes import batches, standard_library_bytes

import attnres_compile

arguments = parsed(__doc__, steps=300, seeds=3)
TOKENS = standard_library_bytes()
TRAINED_ON = len(TOKENS) * 9 // 10
HELD_OUT = list(itertools.islice(batches(TOKENS[TRAINED_ON:], rows=8, length=64), 16))
RATE = 4e-3


def train(model, optimizer, steps: range, seed: int, name: str) -> None:
    """Some steps of ``arguments.steps``, over which the rate falls to zero in a straight line."""
    data = batches(TOKENS[:TRAINED_ON], rows=8, length=64, seed=seed)
    for step, rows in zip(steps, itertools.islice(data, steps.start, None), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / arguments.steps)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, arguments.steps // 3) == 0:
            print(f"{name} step {step:3d}  loss {loss.item():.3f}")


@torch.no_grad()
def outputs(model) -> tuple[torch.Tensor, float]:
    """Logits and mean loss on text that is held out."""
    found = [model(input_ids=rows, labels=rows) for rows in HELD_OUT]
    return torch.stack([one.logits for one in found]), statistics.mean(one.loss.item() for one in found)


def prepare(model, scale: str) -> torch.optim.Optimizer:
    """Convert a model, or change its scale; the AttnRes parameters that it has are kept."""
    kept = dict(model.named_parameters())
    if hasattr(model, "attnres"):
        attnres_compile.unprepare(model)
    attnres_compile.prepare(model, kwargs={"input_ids": HELD_OUT[0], "labels": HELD_OUT[0]}, num_blocks=4, scale=scale)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(kept.get(name, parameter))
    torch.compiler.reset()  # what was compiled of the model as it was counts against Dynamo's limit
    model.compile(backend="attnres", options={"inner": arguments.inner})
    return torch.optim.AdamW(attnres_compile.param_groups(model, lr=RATE, weight_decay=0.0))


differences, half = [], arguments.steps // 2
for seed in range(arguments.seeds):
    plain = small_llama(arguments.layers, seed=seed, use_cache=False)
    train(plain, torch.optim.AdamW(plain.parameters(), weight_decay=0.0), range(arguments.steps), seed, "pretraining")
    model = copy.deepcopy(plain)
    logits, loss = outputs(plain)
    optimizer = prepare(model, "sum")
    print(f"converted: logits moved by {(outputs(model)[0] - logits).abs().max():.1e}, loss {loss:.4f}")
    train(model, optimizer, range(half), 100 + seed, "AttnRes")
    logits, before = outputs(model)
    moments = optimizer.state_dict()
    optimizer = prepare(model, "mean")
    optimizer.load_state_dict(moments)
    print(f"sum to mean: logits moved by {(outputs(model)[0] - logits).abs().max():.1e}, loss {before:.4f}")
    train(model, optimizer, range(half, arguments.steps), 100 + seed, "AttnRes")
    goes_on = torch.optim.AdamW(plain.parameters(), weight_decay=0.0)
    train(plain, goes_on, range(arguments.steps), 100 + seed, "plain")
    differences.append(outputs(model)[1] - outputs(plain)[1])
    print(f"seed {seed}: AttnRes {outputs(model)[1]:.4f}, plain {outputs(plain)[1]:.4f} on held out text")
print(
    f"AttnRes less plain: {', '.join(f'{one:+.4f}' for one in differences)}, mean {statistics.mean(differences):+.4f}"
)
print(attnres_compile.status(model))
