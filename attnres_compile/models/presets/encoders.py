"""Models of images and speech, and encoder-decoders."""

from __future__ import annotations

from typing import Any

from attnres_compile.models.presets.preset import Preset


def _t5(name: str, source: str, **values: Any) -> Preset:
    return Preset(name, source, "T5Config", "T5ForConditionalGeneration", values)


def _whisper(name: str, source: str, width: int, layers: int, heads: int) -> Preset:
    values = {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "vocab_size": 51865,
        "num_mel_bins": 80,
    }
    return Preset(name, source, "WhisperConfig", "WhisperForConditionalGeneration", values)


def _vit(name: str, source: str, width: int, layers: int, heads: int) -> Preset:
    values = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": 224,
        "patch_size": 16,
        "num_labels": 1000,
    }
    return Preset(name, source, "ViTConfig", "ViTForImageClassification", values)


_DINOV2_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}

PRESETS = (
    _vit("vit-b-16", "google/vit-base-patch16-224, config.json", 768, 12, 12),
    _vit("vit-l-16", "google/vit-large-patch16-224, config.json", 1024, 24, 16),
    Preset("dinov2-l", "facebook/dinov2-large, config.json", "Dinov2Config", "Dinov2Model", _DINOV2_L),
    _whisper("whisper-tiny", "openai/whisper-tiny, config.json", 384, 4, 6),
    _whisper("whisper-large", "openai/whisper-large, config.json", 1280, 32, 20),
    _t5("t5-small", "google-t5/t5-small, config.json"),
    _t5(
        "t5-3b",
        "google-t5/t5-3b, config.json",
        d_model=1024,
        d_kv=128,
        d_ff=16384,
        num_layers=24,
        num_heads=32,
    ),
)
