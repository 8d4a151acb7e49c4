"""Encoders, encoder-decoders and vision models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.zoo.case import Case, Expected
from tests.zoo.hf_common import HEADS, LENGTH, VOCAB, WIDTH, hf_case, random_tokens, special_tokens, two_norm_stream

LAYERS = 3
ENCODER_LAYERS = 2
DECODER_LAYERS = 3


def _image_inputs(size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def _two_sequences() -> dict[str, Any]:
    return {"input_ids": random_tokens(), "decoder_input_ids": random_tokens(9)}


def _audio_inputs() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 4 * LENGTH), "decoder_input_ids": random_tokens(9)}


T5_ENCODER = Expected(
    writes=2 * ENCODER_LAYERS,
    reads=2 * ENCODER_LAYERS + 1,
    read_modules=(
        "encoder.block.0.layer.0.layer_norm",
        "encoder.block.0.layer.1.layer_norm",
        "encoder.block.1.layer.0.layer_norm",
        "encoder.block.1.layer.1.layer_norm",
        "encoder.final_layer_norm",
    ),
)
T5_DECODER = Expected(
    writes=3 * DECODER_LAYERS,
    reads=3 * DECODER_LAYERS + 1,
    read_modules=(
        *(f"decoder.block.{block}.layer.{layer}.layer_norm" for block in range(DECODER_LAYERS) for layer in range(3)),
        "decoder.final_layer_norm",
    ),
)


def _t5(name: str, why: str, **changes: object) -> Case:
    config = {
        "vocab_size": VOCAB,
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 2 * WIDTH,
        "num_layers": ENCODER_LAYERS,
        "num_decoder_layers": DECODER_LAYERS,
        "num_heads": HEADS,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        **changes,
    }
    return hf_case(
        name,
        "T5Config",
        "T5ForConditionalGeneration",
        config,
        (T5_ENCODER, T5_DECODER),
        why,
        inputs=_two_sequences,
    )


T5 = _t5(
    "t5",
    "T5LayerSelfAttention, T5LayerCrossAttention and T5LayerFF each norm and add once: two writes per "
    "encoder block, three per decoder block. The decoder sees the encoder's normed output only, and dropout "
    "on the embeddings and after the final norm changes no count.",
)
T5_GATED = _t5(
    "t5_gated",
    "As t5; the gated MLP multiplies two branches of the same normed state.",
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)

WHISPER = hf_case(
    "whisper",
    "WhisperConfig",
    "WhisperForConditionalGeneration",
    {
        "vocab_size": VOCAB,
        "num_mel_bins": 8,
        "d_model": WIDTH,
        "encoder_layers": ENCODER_LAYERS,
        "encoder_attention_heads": HEADS,
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_layers": DECODER_LAYERS,
        "decoder_attention_heads": HEADS,
        "decoder_ffn_dim": 2 * WIDTH,
        "max_source_positions": 2 * LENGTH,
        "max_target_positions": 32,
        "decoder_start_token_id": 1,
        "begin_suppress_tokens": None,
        **special_tokens(),
    },
    (
        Expected(writes=2 * ENCODER_LAYERS, reads=2 * ENCODER_LAYERS + 1),
        Expected(writes=3 * DECODER_LAYERS, reads=3 * DECODER_LAYERS + 1),
    ),
    "WhisperEncoderLayer adds twice, WhisperDecoderLayer three times (self, cross, MLP), each behind its "
    "own norm, and both stacks end in layer_norm. Convolutions and position embeddings come before the "
    "roots.",
    inputs=_audio_inputs,
)

_VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 32,
    "patch_size": 8,
}

VIT = hf_case(
    "vit",
    "ViTConfig",
    "ViTModel",
    {**_VISION, "intermediate_size": 2 * WIDTH},
    two_norm_stream(LAYERS),
    "ViTLayer computes `attention + residual` behind layernorm_before and `mlp + residual` behind "
    "layernorm_after; ViTModel ends in layernorm, and the pooler reads that, not a state.",
    inputs=_image_inputs(32),
)

DINOV2 = hf_case(
    "dinov2",
    "Dinov2Config",
    "Dinov2Model",
    {**_VISION, "mlp_ratio": 2, "layerscale_value": 0.1},
    two_norm_stream(LAYERS),
    "Dinov2Layer scales each branch by its LayerScale and adds `drop_path(branch) + residual`, twice per "
    "layer; layernorm ends the stream.",
    inputs=_image_inputs(32),
)

SIGLIP_VISION = hf_case(
    "siglip_vision",
    "SiglipVisionConfig",
    "SiglipVisionModel",
    {**_VISION, "intermediate_size": 2 * WIDTH},
    two_norm_stream(LAYERS),
    "SiglipEncoderLayer adds twice behind layer_norm1 and layer_norm2, and post_layernorm is the last read. "
    "The pooling head starts over from a probe and adds its MLP once: a chain too short to be rewritten.",
    also_declined=("too_few_writes",),
    inputs=_image_inputs(32),
)

SWIN = hf_case(
    "swin",
    "SwinConfig",
    "SwinModel",
    {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 1, 2],
        "num_heads": [2, 2, 4],
        "window_size": 4,
        "mlp_ratio": 2.0,
    },
    (Expected(writes=4, reads=5), Expected(writes=2, reads=3), Expected(writes=4, reads=5)),
    "SwinLayer adds attention and MLP behind layernorm_before and layernorm_after. SwinPatchMerging slices, "
    "concatenates and norms a stage's last state, which is its last read; the projection after it is the "
    "next stage's root. The last stage ends in the model's layernorm. The reshaped copies of the states are "
    "unused.",
    inputs=_image_inputs(32),
)

MODERNBERT = hf_case(
    "modernbert",
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "local_attention": 8,
        "cls_token_id": 1,
        "sep_token_id": 2,
        **special_tokens(),
    },
    (Expected(writes=2 * LAYERS, reads=2 * LAYERS + 1, unnormed=1),),
    "ModernBertEncoderLayer adds twice; the first layer's attn_norm is an Identity, so its attention reads "
    "the root un-normed (the embedding's own norm lies before the root). A read of the root has one source, "
    "which makes this harmless.",
)

_POST_NORM_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    **special_tokens(),
}

BERT = hf_case(
    "bert",
    "BertConfig",
    "BertForMaskedLM",
    _POST_NORM_SIZES,
    (),
    "BertSelfOutput and BertOutput return LayerNorm(branch + input), and the next residual is that norm's output.",
    declined="post_norm",
)

ALBERT = hf_case(
    "albert",
    "AlbertConfig",
    "AlbertModel",
    {**_POST_NORM_SIZES, "embedding_size": 16},
    (),
    "AlbertAttention and AlbertLayer norm the sum, and the same layer is applied again to what they return.",
    declined="post_norm",
)

BART = hf_case(
    "bart",
    "BartConfig",
    "BartForConditionalGeneration",
    {
        "vocab_size": VOCAB,
        "d_model": WIDTH,
        "encoder_layers": ENCODER_LAYERS,
        "encoder_attention_heads": HEADS,
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_layers": DECODER_LAYERS,
        "decoder_attention_heads": HEADS,
        "decoder_ffn_dim": 2 * WIDTH,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
        **special_tokens(),
    },
    (),
    "BartEncoderLayer and BartDecoderLayer apply self_attn_layer_norm, encoder_attn_layer_norm and "
    "final_layer_norm to the sum, and take the norm's output as the next residual.",
    declined="post_norm",
    inputs=_two_sequences,
)

CASES: tuple[Case, ...] = (
    T5,
    T5_GATED,
    WHISPER,
    VIT,
    DINOV2,
    SIGLIP_VISION,
    SWIN,
    MODERNBERT,
    BERT,
    ALBERT,
    BART,
)
