"""Inputs of small models: by the names of the parameters of their forward, until one set of them runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

TOKENS = 12
_LOWEST_TOKEN, _HIGHEST_TOKEN = 6, 90
_SAMPLES = 4000
_GRID = (4, 4)
_GRIDS = ("grid_thw", "image_grid_thw")


def candidates(model: Any) -> Iterator[dict[str, Any]]:
    """Keyword arguments that a model of transformers may run on, the likeliest first.

    Args:
        model: whose forward, main input and configuration say what it takes.
    """
    parameters = inspect.signature(model.forward).parameters
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    main: str | list[str] = getattr(model, "main_input_name", "")
    mains = [main] if isinstance(main, str) else main
    first = [name for name in dict.fromkeys([*mains, *required]) if name in parameters]
    if "bbox" in parameters:
        first.append("bbox")
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        first.append("decoder_input_ids")
    together = [name for name in _GUESSES if name in parameters]
    pairs = [[*first, name] for name in together if name not in first]
    alone = [[name] for name in together]
    grid = [name for name in _GRIDS if name in parameters]
    if grid and "input_ids" not in parameters:  # the main input is named so wherever a class names none
        yield from _patches(model.config, grid[0], first)
    seen: list[list[str]] = []
    sets: list[list[str]] = [first, *pairs, together, *alone]
    for names in sets:
        if names and names not in seen:
            seen.append(names)
            yield from _of_each_form(model.config, names)


def made(specification: dict[str, Any]) -> dict[str, Any]:
    """Inputs out of plain data: ``{"ids": shape}``, ``{"randn": shape}``, ``{"ones": shape}``, ``{"zeros": shape}``
    (whole numbers), ``{"true": shape}``, ``{"tensor": nested list}``, a list of these, or a value as it is.

    Args:
        specification: of every keyword argument.
    """
    return {name: _made(value) for name, value in specification.items()}


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    makers: dict[str, Callable[[Any], Any]] = {
        "ids": _tokens,
        "randn": torch.randn,
        "rand": torch.rand,
        "ones": lambda shape: torch.ones(shape, dtype=torch.long),
        "zeros": lambda shape: torch.zeros(shape, dtype=torch.long),
        "true": lambda shape: torch.ones(shape, dtype=torch.bool),
        "tensor": torch.tensor,
    }
    return makers[kind](content)


def _of_each_form(config: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    """Inputs of these names; where one may have several shapes, with each of them."""
    forms = max((len(_GUESSES[name](config)) for name in names if name in _GUESSES), default=0)
    if any(name not in _GUESSES for name in names):
        return
    for form in range(forms):
        yield {name: shapes[min(form, len(shapes) - 1)] for name in names for shapes in [_GUESSES[name](config)]}


def _patches(config: Any, grid: str, names: list[str]) -> Iterator[dict[str, Any]]:
    """Images as flat patches, and the grid that they make."""
    patch = _first([config], ("patch_size",)) or 14
    patch = patch if isinstance(patch, int) else patch[0]
    frames, channels = (_first([config], one) for one in (("temporal_patch_size",), ("in_channels", "num_channels")))
    channels = channels if isinstance(channels, int) else 3
    width = channels * (frames or 1) * patch * patch
    main = next((name for name in names if name != grid), "hidden_states")
    count = _GRID[0] * _GRID[1]
    shapes = [(count, width), (count, channels, patch, patch), (1, count, width)]
    for shape in shapes:
        yield {main: torch.randn(shape), grid: torch.tensor([[1, *_GRID]])}


def _tokens(shape: Any) -> torch.Tensor:
    return torch.randint(_LOWEST_TOKEN, _HIGHEST_TOKEN, tuple(shape))


def _token_ids(config: Any) -> list[torch.Tensor]:
    codebooks = getattr(config, "num_codebooks", None)
    known = _first([config.get_text_config()], ("vocab_size",)) or _HIGHEST_TOKEN
    plain = _tokens((1, TOKENS)).clamp_max(known - 1)
    return [plain] if not codebooks else [plain, _tokens((1, TOKENS, codebooks)), _tokens((1, codebooks, TOKENS))]


def _images(config: Any) -> list[torch.Tensor]:
    parts = [config, *(getattr(config, name, None) for name in ("vision_config", "backbone_config", "encoder"))]
    size = _first(parts, ("image_size", "img_size", "input_size", "pretrain_image_size")) or 64
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    channels = _first(parts, ("num_channels", "in_channels", "in_chans", "image_channels"))
    channels = channels if isinstance(channels, int) else 3
    frames = _first(parts, ("num_frames", "frames_per_clip", "pixels_per_clip")) or 2
    picture = torch.randn(1, channels, height, width)
    return [picture, torch.randn(1, frames, channels, height, width)]


def _spectrograms(config: Any) -> list[torch.Tensor]:
    parts = [config, *(getattr(config, name, None) for name in ("audio_config", "encoder_config"))]
    bins = _first(parts, ("num_mel_bins", "feature_size", "input_dim", "feature_projection_input_dim")) or 80
    positions = _first(parts, ("max_source_positions",)) or 32
    length = _first(parts, ("max_length", "spec_size")) or 2 * positions
    return [torch.randn(1, bins, 2 * positions), torch.randn(1, 2 * positions, bins), torch.randn(1, 1, length, bins)]


def _sounds(config: Any) -> list[torch.Tensor]:
    bins = _first([config], ("num_mel_bins",)) or 80
    length = _first([config], ("max_length",)) or 64
    return [torch.randn(1, _SAMPLES), torch.randn(1, 1, _SAMPLES), torch.randn(1, length, bins)]


def _embeddings(config: Any) -> list[torch.Tensor]:
    width = _first([config], ("hidden_size", "d_model", "embed_dim", "n_embd", "dim")) or 64
    width = width if isinstance(width, int) else width[0]  # of the first stage
    return [torch.randn(1, TOKENS, width)]


def _first(parts: list[Any], names: tuple[str, ...]) -> Any:
    found = (getattr(part, name, None) for part in parts if part is not None for name in names)
    return next((value for value in found if value is not None and not callable(value)), None)


_GUESSES: dict[str, Callable[[Any], list[torch.Tensor]]] = {
    "input_ids": _token_ids,
    "decoder_input_ids": lambda config: [_tokens((1, TOKENS))],
    "pixel_values": _images,
    "pixel_values_videos": lambda config: _images(config)[::-1],
    "input_features": _spectrograms,
    "input_values": _sounds,
    "bbox": lambda config: [torch.zeros(1, TOKENS, 4, dtype=torch.long)],
    "inputs_embeds": _embeddings,
    "hidden_states": _embeddings,
    "attention_mask": lambda config: [torch.ones(1, TOKENS, dtype=torch.long)],
}
