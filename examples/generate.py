"""Generate with a compiled model: dynamic and static cache, a batch with left padding; checked by full forwards.

python examples/generate.py
"""

import torch
from small_llama import byte_rows, parsed, small_llama

import attnres_compile

arguments = parsed(__doc__)
# In the place of training: wide weights and queries, so that every prompt goes on in another way.
model = small_llama(arguments.layers, initializer_range=0.3).eval()
attnres_compile.prepare(model, kwargs={"input_ids": next(byte_rows())}, num_blocks=4)
for read in model.attnres.streams[0].reads:
    torch.nn.init.normal_(read.query)
model.compile(backend="attnres", options={"inner": arguments.inner})

PROMPTS = ("def forward(self, ", "import ", "class Path:")
NEW = 8
longest = max(map(len, PROMPTS))
# Left padding: generation goes on at the right end of every row.
ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt.encode()) for prompt in PROMPTS])
mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])


def by_full_forwards(prompt: str) -> list[int]:
    """One prompt, no padding, no cache: every token from a forward of all before it."""
    tokens = torch.tensor([list(prompt.encode())])
    for _ in range(NEW):
        logits = model(input_ids=tokens, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=-1)
    return tokens[0, len(prompt) :].tolist()


with torch.no_grad():
    expected = [by_full_forwards(prompt) for prompt in PROMPTS]

for cache in ("dynamic", "static"):
    # On a GPU, generate itself compiles forward for a static cache, by Inductor: disable_compile keeps ours.
    found = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
    )[:, longest:].tolist()
    equal = sum(one == other for one, other in zip(found, expected, strict=True))
    print(f"{cache} cache: {equal} of {len(PROMPTS)} rows equal those of full forwards")
print(f"{len(set(map(tuple, expected)))} of {len(PROMPTS)} prompts go on in a way of their own")
print(attnres_compile.status(model))
