#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0, CPU): PaliGemma without token types is causal when compiled, and not in eager.
#
# A text without an image and without token_type_ids is given to PaliGemma twice, the second time with other tokens at
# its end. With scaled_dot_product_attention, the default, the logits of the first tokens change: they attend to what
# comes later. Under torch.compile (backend="eager", so that nothing is generated) they do not, and neither do they with
# attn_implementation="eager". ColPali, which is built on it, differs in the same way. So the same weights and inputs
# give other numbers compiled, by far more than rounding.
#
# Output seen:
#   sdpa, eager: earlier logits change with later tokens: True
#   sdpa, compiled: earlier logits change with later tokens: False
#   eager attention: earlier logits change with later tokens: False
#   sdpa: compiled equals eager: False
# Exits with 1 if any line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet transformers==5.23.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON' 2>/dev/null | tee "$folder/seen"
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

text = {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99, "pad_token_id": 0}
vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 32}
config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_id=90, projection_dim=32)
torch.manual_seed(0)
model = PaliGemmaForConditionalGeneration(config).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
ids = torch.randint(1, 80, (1, 12))
other = torch.cat([ids[:, :6], ids[:, 6:].flip(1)], 1)


@torch.no_grad()
def changed(call):
    return not torch.allclose(call(input_ids=ids).logits[:, :6], call(input_ids=other).logits[:, :6], atol=1e-4)


line = "earlier logits change with later tokens"
compiled = torch.compile(model, backend="eager")
print(f"sdpa, eager: {line}: {changed(model)}")
print(f"sdpa, compiled: {line}: {changed(compiled)}")
with torch.no_grad():
    same = torch.allclose(model(input_ids=ids).logits, compiled(input_ids=ids).logits, atol=1e-4)
model.set_attn_implementation("eager")
print(f"eager attention: {line}: {changed(model)}")
print(f"sdpa: compiled equals eager: {same}")
PYTHON
printf '%s\n' "sdpa, eager: earlier logits change with later tokens: True" \
  "sdpa, compiled: earlier logits change with later tokens: False" \
  "eager attention: earlier logits change with later tokens: False" \
  "sdpa: compiled equals eager: False" | diff - "$folder/seen"
