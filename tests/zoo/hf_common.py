"""Building blocks shared by the transformers cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.zoo.case import Built, Case, Expected
from tests.zoo.torchvision_shim import ensure_torchvision_imports

VOCAB = 100
WIDTH = 32
HEADS = 4
LENGTH = 12

Inputs = Callable[[], dict[str, Any]]


def token_inputs() -> dict[str, Any]:
    """Token ids away from the special ones at the low end."""
    return {"input_ids": random_tokens()}


def random_tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(5, VOCAB, (2, length))


def hf_case(
    name: str,
    config_class: str,
    model_class: str,
    config: dict[str, Any],
    streams: tuple[Expected, ...],
    why: str,
    *,
    declined: str | None = None,
    also_declined: tuple[str, ...] = (),
    inputs: Inputs = token_inputs,
) -> Case:
    """A case whose model comes from a transformers config with random weights."""

    def build() -> Built:
        # The vision models import torchvision wherever it is installed.
        ensure_torchvision_imports()
        import transformers

        torch.manual_seed(0)
        model_config = getattr(transformers, config_class)(**config)
        if hasattr(model_config, "use_cache"):
            model_config.use_cache = False
        model = getattr(transformers, model_class)(model_config).to(torch.float32).eval()
        return model, (), inputs()

    return Case(f"hf_{name}", build, streams, declined, why, also_declined)


def two_norm_stream(layers: int) -> tuple[Expected, ...]:
    """Layers that add attention, then MLP, each behind its own norm, and a final norm."""
    return (Expected(writes=2 * layers, reads=2 * layers + 1),)


def special_tokens() -> dict[str, int]:
    """Special token ids inside the small vocabulary; the defaults of most configs lie outside."""
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
