"""Example inputs of transformers models, guessed from the model's main input and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from attnres_compile.models.errors import InputGuessError, LoadOptionError, SequenceTooLongError
from attnres_compile.models.load_options import LoadOptions

HOW_TO_GIVE_INPUTS = (
    "write a function that returns (model, kwargs) or (model, args, kwargs) and name it as module:factory"
)
_LENGTH_LIMITS = ("max_position_embeddings", "max_seq_len")
_DECODER_LENGTH_LIMITS = ("max_target_positions", "max_position_embeddings", "max_seq_len")


def guess_inputs(model: Any, options: LoadOptions) -> dict[str, torch.Tensor]:
    """Keyword arguments with which a model can be called, on the CPU.

    Args:
        model: of transformers.
        options: rows and tokens.

    Raises:
        InputGuessError: the main input is of a kind not known here.
        SequenceTooLongError: more tokens than the model has positions.
        LoadOptionError: a length for a model that takes none.
    """
    main = model.main_input_name
    guess = _GUESSES.get(main)
    if guess is None:
        raise InputGuessError(
            f"the inputs of {type(model).__name__} cannot be guessed: its main input is {main!r}, and only "
            f"{', '.join(sorted(_GUESSES))} are known; {HOW_TO_GIVE_INPUTS}"
        )
    inputs = {main: guess(model.config, options)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(model.config, options, _DECODER_LENGTH_LIMITS)
    elif main != "input_ids" and options.seq is not None:
        raise LoadOptionError(
            f"{type(model).__name__} takes {main}, whose length its configuration fixes: leave --seq out"
        )
    return inputs


def guess_labels(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``{"labels": ..}`` if the model computes a loss from labels of a known shape, else nothing.

    Args:
        model: of transformers.
        inputs: that were guessed for it.
    """
    name = type(model).__name__
    if "labels" not in inspect.signature(model.forward).parameters:
        return {}
    if name.endswith("ForImageClassification"):
        batch = next(iter(inputs.values())).shape[0]
        return {"labels": torch.randint(0, model.config.num_labels, (batch,))}
    if name.endswith(("LMHeadModel", "ForCausalLM", "ForConditionalGeneration", "ForMaskedLM")):
        tokens = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        return {} if tokens is None else {"labels": tokens.clone()}
    return {}


def check_guess(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Run a model once, without gradients.

    Args:
        model: of transformers.
        inputs: that were guessed for it.

    Raises:
        InputGuessError: it does not run on them.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:
        raise InputGuessError(
            f"{type(model).__name__} does not run on the guessed inputs {', '.join(inputs)} "
            f"({type(error).__name__}: {first_line(error)}); {HOW_TO_GIVE_INPUTS}"
        ) from error
    finally:
        model.train(was_training)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or a note that it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _tokens(config: Any, options: LoadOptions, limits: tuple[str, ...] = _LENGTH_LIMITS) -> torch.Tensor:
    """Random token ids, int64 ``[batch, seq]``."""
    text_config = config.get_text_config()
    length = _sequence_length(text_config, options, limits)
    return torch.randint(0, text_config.vocab_size, (options.batch, length))


def _sequence_length(config: Any, options: LoadOptions, limits: tuple[str, ...]) -> int:
    name, limit = next(
        ((name, getattr(config, name)) for name in limits if isinstance(getattr(config, name, None), int)), ("", None)
    )
    if limit is None:
        return options.seq or options.default_seq
    if options.seq is not None and options.seq > limit:
        raise SequenceTooLongError(
            f"seq {options.seq} is longer than the model allows ({name}={limit}): pass --seq {limit} or less"
        )
    return options.seq or min(options.default_seq, limit)


def _pixels(config: Any, options: LoadOptions) -> torch.Tensor:
    """Random images, float ``[batch, channels, height, width]``."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    if size is None:
        raise InputGuessError(
            f"{type(config).__name__} does not say its image_size, so images cannot be guessed; {HOW_TO_GIVE_INPUTS}"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(options.batch, getattr(vision, "num_channels", 3), height, width)


def _spectrogram(config: Any, options: LoadOptions) -> torch.Tensor:
    """A random log-mel spectrogram, float ``[batch, mel bins, frames]``; the encoder halves the frames."""
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if bins is None or positions is None:
        raise InputGuessError(
            f"{type(config).__name__} does not say num_mel_bins and max_source_positions, so a spectrogram "
            f"cannot be guessed; {HOW_TO_GIVE_INPUTS}"
        )
    return torch.randn(options.batch, bins, 2 * positions)


_GUESSES: dict[str, Callable[[Any, LoadOptions], torch.Tensor]] = {
    "input_ids": _tokens,
    "pixel_values": _pixels,
    "input_features": _spectrogram,
}
