"""Decoder-only language models with mixtures of experts."""

from __future__ import annotations

from attnres_compile.models.presets.preset import Preset

_DEEPSEEK_V3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
_KIMI_K2 = {
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "rope_parameters": _DEEPSEEK_V3_ROPE | {"rope_theta": 50000.0, "factor": 32.0, "beta_fast": 1.0},
}
# The class's defaults are the published configuration, but for which layers have full attention: numbered from 1.
_KIMI_LINEAR_FULL_ATTENTION = (4, 8, 12, 16, 20, 24, 27)
_KIMI_LINEAR = {
    "layer_types": [
        "full_attention" if layer in _KIMI_LINEAR_FULL_ATTENTION else "linear_attention" for layer in range(1, 28)
    ]
}
# The class's defaults are the published configuration, but for the number of positions and its rotary scaling.
_DEEPSEEK_V3 = {"max_position_embeddings": 163840, "rope_parameters": _DEEPSEEK_V3_ROPE}

PRESETS = (
    Preset(
        "mixtral-8x7b",
        "mistralai/Mixtral-8x7B-v0.1, config.json",
        "MixtralConfig",
        "MixtralForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
    ),
    Preset(
        "deepseek-v3",
        "deepseek-ai/DeepSeek-V3, config.json; without its multi-token prediction layer",
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        _DEEPSEEK_V3,
    ),
    Preset(
        "kimi-linear-48b",
        "moonshotai/Kimi-Linear-48B-A3B-Base, config.json (the base model of the paper)",
        "KimiLinearConfig",
        "KimiLinearForCausalLM",
        _KIMI_LINEAR,
        # 27 Transformer layers, 54 sublayers in 9 blocks (paper, section 5).
        rewrite={"block_size": 6},
        # Its linear attention is a loop over chunks of 64 tokens in Python.
        capture_seq=64,
    ),
    Preset(
        "kimi-k3-shape",
        "shape of Kimi K3: 93 Transformer layers, width 7168, 12 Transformer layers a block; assumed: attention, "
        "experts and vocabulary of moonshotai/Kimi-K2-Instruct, config.json",
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        _KIMI_K2 | {"num_hidden_layers": 93},
        rewrite={"block_size": 24},
    ),
)
