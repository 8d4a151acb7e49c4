"""Decoder-only language models with dense MLPs."""

from __future__ import annotations

from typing import Any

from attnres_compile.models.presets.preset import Preset


def _gpt2(name: str, source: str, layers: int, width: int, heads: int, **values: Any) -> Preset:
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads}
    return Preset(name, source, "GPT2Config", "GPT2LMHeadModel", shape | values)


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
_LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
_LLAMA_3_70B = _LLAMA_3_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def _llama(name: str, source: str, values: dict[str, Any]) -> Preset:
    return Preset(name, source, "LlamaConfig", "LlamaForCausalLM", values)


def _qwen3(size: str, width: int, mlp: int, layers: int, heads: int, tied: bool) -> Preset:
    values = {
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }
    return Preset(f"qwen3-{size.lower()}", f"Qwen/Qwen3-{size}, config.json", "Qwen3Config", "Qwen3ForCausalLM", values)


_GEMMA_3_4B = {
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 1024,
        "vocab_size": 262208,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        },
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}

PRESETS = (
    _gpt2("gpt2", "openai-community/gpt2, config.json (124M)", 12, 768, 12),
    _gpt2("gpt2-medium", "openai-community/gpt2-medium, config.json (355M)", 24, 1024, 16),
    _gpt2("gpt2-large", "openai-community/gpt2-large, config.json (774M)", 36, 1280, 20),
    _gpt2("gpt2-xl", "openai-community/gpt2-xl, config.json (1.5B)", 48, 1600, 25),
    _gpt2("gpt2-2048", "the gpt2 shape with 2,048 positions in place of 1,024", 12, 768, 12, n_positions=2048),
    _llama("llama-3.2-1b", "meta-llama/Llama-3.2-1B, config.json", _LLAMA_3_2_1B),
    _llama("llama-3-8b", "meta-llama/Meta-Llama-3-8B, config.json", _LLAMA_3_8B),
    _llama("llama-3-70b", "meta-llama/Meta-Llama-3-70B, config.json", _LLAMA_3_70B),
    _qwen3("0.6B", 1024, 3072, 28, 16, True),
    _qwen3("1.7B", 2048, 6144, 28, 16, True),
    _qwen3("4B", 2560, 9728, 36, 32, True),
    _qwen3("8B", 4096, 12288, 36, 32, False),
    _qwen3("14B", 5120, 17408, 40, 40, False),
    _qwen3("32B", 5120, 25600, 64, 64, False),
    Preset(
        "gemma3-4b",
        "google/gemma-3-4b-pt, config.json; fed with text, so its vision tower does not run",
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        _GEMMA_3_4B,
    ),
)
