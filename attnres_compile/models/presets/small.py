"""Small models of common architectures, to try things out and for tests; nothing was published with these values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attnres_compile.models.presets.preset import Preset

_DECODER = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
}
_GPT2 = {
    "n_layer": 4,
    "n_embd": 64,
    "n_head": 4,
    "vocab_size": 256,
    "n_positions": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4, "vocab_size": 256}
_VIT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def _small(name: str, architecture: str, config_class: str, model_class: str, values: Mapping[str, Any]) -> Preset:
    return Preset(name, f"small model of the {architecture} architecture", config_class, model_class, values)


PRESETS = (
    _small("gpt2-tiny", "gpt2", "GPT2Config", "GPT2LMHeadModel", _GPT2),
    _small("llama-tiny", "Llama", "LlamaConfig", "LlamaForCausalLM", _DECODER),
    _small("qwen3-tiny", "Qwen3", "Qwen3Config", "Qwen3ForCausalLM", _DECODER | {"head_dim": 16}),
    _small("t5-tiny", "T5", "T5Config", "T5ForConditionalGeneration", _T5),
    _small("vit-tiny", "ViT", "ViTConfig", "ViTForImageClassification", _VIT),
)
