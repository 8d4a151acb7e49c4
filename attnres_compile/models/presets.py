"""Named models: published transformers configurations with random weights, and small ones of the same shape.

A preset is data: the names of a configuration and a model class of transformers, the values that differ
from the class's defaults, and where those values were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnres_compile.models.transformers_source import find_class


@dataclass(frozen=True)
class Preset:
    """One named model.

    source: the published configuration, or the family whose shape a small one has, in one line.
    config_class, model_class: names in transformers. values: differences from the defaults of config_class.
    """

    name: str
    source: str
    config_class: str
    model_class: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def build_config(self) -> Any:
        """The transformers configuration. Raises MissingExtraError."""
        return find_class(self.config_class)(**self.values)

    def build_model(self, config: Any) -> Any:
        """The transformers model of ``config`` with random weights. Raises MissingExtraError."""
        return find_class(self.model_class)(config)


def _gpt2(name: str, source: str, layers: int, width: int, heads: int, **values: Any) -> Preset:
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads}
    return Preset(name, source, "GPT2Config", "GPT2LMHeadModel", shape | values)


_GPT2_TINY = {"vocab_size": 256, "n_positions": 512, "bos_token_id": None, "eos_token_id": None}
_SMALL_DECODER = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
}
_LLAMA_3_2_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
}
_QWEN3_0_6B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
_QWEN3_1_7B = _QWEN3_0_6B | {"hidden_size": 2048, "intermediate_size": 6144}
_T5_SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128}
_T5_TINY = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4, "vocab_size": 256}
_WHISPER_TINY = {
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "vocab_size": 51865,
    "num_mel_bins": 80,
}
_VIT_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_VIT_B_16 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "num_labels": 1000,
}

_ALL = (
    _gpt2("gpt2", "openai-community/gpt2, config.json (124M)", 12, 768, 12),
    _gpt2("gpt2-medium", "openai-community/gpt2-medium, config.json (355M)", 24, 1024, 16),
    _gpt2("gpt2-large", "openai-community/gpt2-large, config.json (774M)", 36, 1280, 20),
    _gpt2("gpt2-xl", "openai-community/gpt2-xl, config.json (1.5B)", 48, 1600, 25),
    _gpt2("gpt2-2048", "the gpt2 shape with 2,048 positions in place of 1,024", 12, 768, 12, n_positions=2048),
    _gpt2("gpt2-tiny", "small model of the gpt2 architecture", 4, 64, 4, **_GPT2_TINY),
    Preset(
        "llama-tiny",
        "small model of the Llama architecture",
        "LlamaConfig",
        "LlamaForCausalLM",
        _SMALL_DECODER,
    ),
    Preset("llama-3.2-1b", "meta-llama/Llama-3.2-1B, config.json", "LlamaConfig", "LlamaForCausalLM", _LLAMA_3_2_1B),
    Preset(
        "qwen3-tiny",
        "small model of the Qwen3 architecture",
        "Qwen3Config",
        "Qwen3ForCausalLM",
        _SMALL_DECODER | {"head_dim": 16},
    ),
    Preset("qwen3-0.6b", "Qwen/Qwen3-0.6B, config.json", "Qwen3Config", "Qwen3ForCausalLM", _QWEN3_0_6B),
    Preset("qwen3-1.7b", "Qwen/Qwen3-1.7B, config.json", "Qwen3Config", "Qwen3ForCausalLM", _QWEN3_1_7B),
    Preset("t5-small", "google-t5/t5-small, config.json", "T5Config", "T5ForConditionalGeneration", _T5_SMALL),
    Preset("t5-tiny", "small model of the T5 architecture", "T5Config", "T5ForConditionalGeneration", _T5_TINY),
    Preset(
        "whisper-tiny",
        "openai/whisper-tiny, config.json",
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        _WHISPER_TINY,
    ),
    Preset(
        "vit-b-16",
        "google/vit-base-patch16-224, config.json",
        "ViTConfig",
        "ViTForImageClassification",
        _VIT_B_16,
    ),
    Preset("vit-tiny", "small model of the ViT architecture", "ViTConfig", "ViTForImageClassification", _VIT_TINY),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
