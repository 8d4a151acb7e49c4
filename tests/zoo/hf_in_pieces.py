"""Models of transformers of which Dynamo makes several graphs: experts by data, images in the middle of a text.

Expectations are read off their sources, as in the other files; no test rewrites them as one graph.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.case import Case, Expected
from tests.zoo.hf_common import HEADS, VOCAB, WIDTH, hf_case, random_tokens, special_tokens, two_norm_stream

IMAGE = 90
"""The token that stands for a patch of an image."""


def _text() -> dict[str, Any]:
    return {"input_ids": random_tokens()}


def _text_to_text() -> dict[str, Any]:
    return {"input_ids": random_tokens(), "decoder_input_ids": random_tokens(7)}


def _image_in_text() -> dict[str, Any]:
    """One image of 4 x 4 patches, which become 2 x 2 tokens."""
    tokens = torch.randint(5, 80, (1, 14))
    tokens[0, 2:8] = torch.tensor([92, IMAGE, IMAGE, IMAGE, IMAGE, 93])
    return {
        "input_ids": tokens,
        "pixel_values": torch.randn(16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (tokens == IMAGE).int(),
    }


CASES: tuple[Case, ...] = (
    hf_case(
        "dbrx",
        "DbrxConfig",
        "DbrxForCausalLM",
        {
            **special_tokens(),
            "d_model": WIDTH,
            "n_heads": HEADS,
            "n_layers": 3,
            "max_seq_len": 64,
            "vocab_size": VOCAB,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
        two_norm_stream(3),
        "attention and experts, each behind its own norm; experts in a loop over those that have tokens",
        inputs=_text,
    ),
    hf_case(
        "jetmoe",
        "JetMoeConfig",
        "JetMoeForCausalLM",
        {
            **special_tokens(),
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "intermediate_size": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        two_norm_stream(3),
        "experts in attention and MLP, their tokens split by sizes that depend on data",
        inputs=_text,
    ),
    hf_case(
        "longcat_flash",
        "LongcatFlashConfig",
        "LongcatFlashForCausalLM",
        {
            **special_tokens(),
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_layers": 2,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": 48,
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "head_dim": 8,
            "v_head_dim": 8,
            "moe_topk": 2,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "expert_ffn_hidden_size": 16,
        },
        (Expected(writes=10, reads=9),),
        "two attentions and two MLPs a layer; the experts read with the first MLP and are added with the second one",
        inputs=_text,
    ),
    hf_case(
        "qwen3_vl",
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": VOCAB,
                "hidden_size": WIDTH,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "num_attention_heads": HEADS,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default", "mrope_interleaved": True},
                "pad_token_id": 0,
                "use_cache": False,
            },
            "vision_config": {
                "depth": 3,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "patch_size": 4,
                "temporal_patch_size": 2,
                "spatial_merge_size": 2,
                "out_hidden_size": WIDTH,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            "image_token_id": IMAGE,
            "video_token_id": 91,
            "vision_start_token_id": 92,
            "vision_end_token_id": 93,
        },
        (Expected(writes=6, reads=9),),
        "the vision tower, with two states read for the language model, which adds to its own states in place, at the "
        "places of the image: a chain that begins anew behind each of its first layers",
        also_declined=("interrupted", "interrupted", "opaque"),
        inputs=_image_in_text,
    ),
    hf_case(
        "step3p7",
        "Step3p7Config",
        "Step3p7ForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": VOCAB,
                "hidden_size": WIDTH,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "num_attention_heads": HEADS,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
                "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"],
                "sliding_window": 4,
                "moe_intermediate_size": 16,
                "n_routed_experts": 4,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "share_expert_dim": 16,
                "pad_token_id": 0,
                "use_cache": False,
            },
            "vision_config": {
                "width": 16,
                "layers": 3,
                "heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "mlp_ratio": 2.0,
            },
            "image_token_id": IMAGE,
        },
        two_norm_stream(4),
        "experts by data in all layers but the first; no image is given",
        inputs=_text,
    ),
    hf_case(
        "switch_transformers",
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        {
            "vocab_size": VOCAB,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 4,
            "num_decoder_layers": 4,
            "num_heads": HEADS,
            "num_experts": 4,
            "num_sparse_encoder_layers": 2,
            "num_sparse_decoder_layers": 2,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        },
        (Expected(writes=8, reads=9), Expected(writes=12, reads=13)),
        "an encoder and a decoder as T5's; every second layer has experts, of those that have tokens",
        inputs=_text_to_text,
    ),
)
