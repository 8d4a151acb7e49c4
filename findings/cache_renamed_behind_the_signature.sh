#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.13.0 (CPU): the signature of a model denies an argument that its call takes.
#
# The cache of a causal model was past_key_values until 5.23, and is cache in 5.24. The old name still works, through a
# decorator, with one line in the log; but inspect.signature shows only the new one. So code that looks whether a model
# can be given a cache, as programs do that take any model, finds in 5.24 that no model can.
#
# Output seen:
#   transformers 5.23.0: past_key_values in the signature: True, taken by the call: True
#   transformers 5.24.0: past_key_values in the signature: False, taken by the call: True
# Exits with 1 if either line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
cat > "$folder/named.py" <<'PYTHON'
import inspect

import torch
import transformers

config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8, bos_token_id=0, eos_token_id=0)
model = transformers.GPT2LMHeadModel(config).eval()
named = "past_key_values" in inspect.signature(model.forward).parameters
cache = transformers.DynamicCache(config=config)
model(input_ids=torch.zeros(1, 3, dtype=torch.long), past_key_values=cache, use_cache=True)
taken = cache.get_seq_length() == 3
print(f"transformers {transformers.__version__}: past_key_values in the signature: {named}, taken by the call: {taken}")
PYTHON
for version in 5.23.0 5.24.0; do
    "$folder/venv/bin/python" -m pip install --quiet "transformers==$version"
    "$folder/venv/bin/python" -W ignore "$folder/named.py" 2> "$folder/log" | tee -a "$folder/seen"
done
printf '%s\n' \
    "transformers 5.23.0: past_key_values in the signature: True, taken by the call: True" \
    "transformers 5.24.0: past_key_values in the signature: False, taken by the call: True" | diff - "$folder/seen"
