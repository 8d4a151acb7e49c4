"""Vision models of timm. It is imported only when a case is built; where it is not installed, the test is skipped."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.zoo.case import Built, Case, Expected

DEPTH = 3
IMAGE = 32


def _timm_case(
    name: str,
    model_name: str,
    config: dict[str, object],
    streams: tuple[Expected, ...],
    why: str,
    declined: str | None = None,
    training: bool = False,
) -> Case:
    def build() -> Built:
        from tests.zoo.torchvision_shim import ensure_torchvision_imports

        ensure_torchvision_imports()
        if importlib.util.find_spec("timm") is None:
            pytest.skip("timm is not installed: make test installs it beside torchvision")
        import timm

        torch.manual_seed(0)
        model = timm.create_model(model_name, num_classes=10, **config).train(training)
        return model, (torch.randn(2, 3, IMAGE, IMAGE),), {}

    return Case(f"timm_{name}", build, streams, declined, why)


_PLAIN = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 32, "depth": DEPTH, "num_heads": 4}
_PLAIN_STREAM = (Expected(writes=2 * DEPTH, reads=2 * DEPTH + 1),)

VIT = _timm_case(
    "vit",
    "vit_tiny_patch16_224",
    _PLAIN,
    _PLAIN_STREAM,
    "Block computes `x + attn(norm1(x))` and `x + mlp(norm2(x))`; VisionTransformer.norm reads the last "
    "state before the class token is taken. Patch and position embeddings make the root.",
)

DEIT3 = _timm_case(
    "deit3",
    "deit3_small_patch16_224",
    _PLAIN,
    _PLAIN_STREAM,
    "VisionTransformer with init_values, so Block scales each branch by a LayerScale before adding it.",
)

DEIT3_TRAINING = _timm_case(
    "deit3_training",
    "deit3_small_patch16_224",
    {**_PLAIN, "drop_path_rate": 0.2, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1},
    _PLAIN_STREAM,
    "As deit3, in training: dropout and drop path act on the branches, position dropout comes before the root.",
    training=True,
)

EVA02 = _timm_case(
    "eva02",
    "eva02_tiny_patch14_224",
    {**_PLAIN, "ref_feat_shape": (4, 4)},
    _PLAIN_STREAM,
    "EvaBlock adds attention and SwiGLU MLP behind norm1 and norm2. Eva pools the last state's patch tokens "
    "by their mean before fc_norm, so the last read is slice, mean, norm: still normed.",
)

BEIT = _timm_case(
    "beit",
    "beit_base_patch16_224",
    _PLAIN,
    _PLAIN_STREAM,
    "Block adds `gamma_1 * attn(norm1(x))` and `gamma_2 * mlp(norm2(x))`; Beit takes the mean of the patch "
    "tokens of the last state and norms it in fc_norm.",
)

SWIN = _timm_case(
    "swin",
    "swin_tiny_patch4_window7_224",
    {
        "img_size": IMAGE,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 1, 2),
        "num_heads": (2, 2, 4),
    },
    (Expected(writes=4, reads=5), Expected(writes=2, reads=3), Expected(writes=4, reads=5)),
    "SwinTransformerBlock adds attention to [B, H, W, C], reshapes to [B, H * W, C], adds the MLP and "
    "reshapes back, which does not end the stream. PatchMerging opens a stage: its reshape, permute and "
    "norm are the last read of the stage before, its projection the new root. SwinTransformer.norm reads "
    "the last stage.",
)

CONVNEXT = _timm_case(
    "convnext",
    "convnext_tiny",
    {"depths": (2, 2, 2, 2), "dims": (16, 32, 32, 32)},
    (),
    "ConvNeXtBlock adds `drop_path(x) + shortcut` on [B, C, H, W]; the norm and MLP inside work on a "
    "permuted copy of the depthwise convolution's output.",
    declined="channels_first",
)

CASES: tuple[Case, ...] = (VIT, DEIT3, DEIT3_TRAINING, EVA02, BEIT, SWIN, CONVNEXT)
