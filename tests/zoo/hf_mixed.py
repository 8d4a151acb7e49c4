"""Mixture-of-experts, linear-attention and state-space models of transformers."""

from __future__ import annotations

from tests.zoo.case import Case, Expected
from tests.zoo.hf_common import HEADS, VOCAB, WIDTH, hf_case, special_tokens, two_norm_stream

LAYERS = 3

# The eager loop over the experts that were hit depends on the data and cannot be captured.
EXPERTS = {"experts_implementation": "batched_mm", "num_experts_per_tok": 2}

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    **special_tokens(),
}
_LATENT_ATTENTION = {
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

MIXTRAL = hf_case(
    "mixtral",
    "MixtralConfig",
    "MixtralForCausalLM",
    {**_SIZES, **EXPERTS, "num_key_value_heads": 2, "num_local_experts": 4},
    two_norm_stream(LAYERS),
    "MixtralDecoderLayer: two norms, two additions; the experts' weighted sum stays inside the MLP.",
)

QWEN3_MOE = hf_case(
    "qwen3_moe",
    "Qwen3MoeConfig",
    "Qwen3MoeForCausalLM",
    {
        **_SIZES,
        **EXPERTS,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "mlp_only_layers": [0],
    },
    two_norm_stream(LAYERS),
    "Qwen3MoeDecoderLayer: two norms, two additions, whether the MLP is dense (layer 0 here) or sparse.",
)

DEEPSEEK_V3 = hf_case(
    "deepseek_v3",
    "DeepseekV3Config",
    "DeepseekV3ForCausalLM",
    {
        **_SIZES,
        **EXPERTS,
        **_LATENT_ATTENTION,
        "q_lora_rank": 16,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    two_norm_stream(LAYERS),
    "DeepseekV3DecoderLayer: two norms, two additions. DeepseekV3MoE adds routed and shared experts inside "
    "the sublayer, which is no write.",
)

KIMI_LINEAR = hf_case(
    "kimi_linear",
    "KimiLinearConfig",
    "KimiLinearForCausalLM",
    {
        **_SIZES,
        **EXPERTS,
        **_LATENT_ATTENTION,
        "moe_intermediate_size": 16,
        "num_local_experts": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "linear_head_dim": 8,
        "linear_num_heads": HEADS,
    },
    two_norm_stream(LAYERS),
    "KimiLinearDecoderLayer: two norms, two additions for delta attention and full attention alike. The "
    "delta rule's loop over a chunk has `row + f(row)` on slices of a matrix: single additions, no stream.",
)


def _mamba(name: str, associative_scan: bool) -> Case:
    return hf_case(
        name,
        "MambaConfig",
        "MambaForCausalLM",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "state_size": 4,
            "num_hidden_layers": 4,
            "use_associative_scan": associative_scan,
            **special_tokens(),
        },
        (Expected(writes=4, reads=5),),
        "MambaBlock is one norm, one mixer and one addition; norm_f ends the stream. The scan's own "
        "recurrence multiplies its state at every step, so it is no stream.",
    )


CASES: tuple[Case, ...] = (
    MIXTRAL,
    QWEN3_MOE,
    DEEPSEEK_V3,
    KIMI_LINEAR,
    _mamba("mamba", associative_scan=True),
    _mamba("mamba_sequential", associative_scan=False),
)
