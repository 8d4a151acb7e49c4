"""A trained plain model goes on: as it is, or converted to AttnRes, with the same batches and the same steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import attnres_compile

from .grid import Run
from .model import Trained
from .text import Text, validation_batches
from .training import train

_BATCHES = 4


class Converted:
    """A prepared model whose scale can be changed between two steps, with its parameters kept."""

    def __init__(self, run: Run, scale: str, inner: str, device: str) -> None:
        self.options = {name: value for name, value in (run.options or {}).items() if name != "scales"}
        self.inner = inner
        self.trained = Trained(run.size, {**self.options, "scale": scale}, inner, device)

    def change(self, scale: str) -> None:
        """Prepare the model again. Its queries and key norms keep their values in new parameters.

        Args:
            scale: from now on.
        """
        model = self.trained.model
        kept = {name: value.detach().clone() for name, value in model.named_parameters()}
        attnres_compile.unprepare(model)
        attnres_compile.prepare(model, kwargs=self.trained.example(), **self.options, scale=scale)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])
        model.compile(backend="attnres", options={"inner": self.inner})


def logits(trained: Trained, batches: list[Tensor]) -> Tensor:
    """Of all bytes of some batches, ``[batches, batch, length, 256]``.

    Args:
        trained: the model.
        batches: ``[batch, length]`` each.
    """
    found = [trained.model(**trained.example() | {"input_ids": ids.to(trained.device)}).logits for ids in batches]
    return torch.stack(found).detach()


def deviation(before: Tensor, after: Tensor) -> dict[str, float]:
    """How far outputs moved: the largest difference, by itself and over the root mean square of what was there.

    Args:
        before: the outputs that should stay.
        after: what they became.
    """
    largest = (after.double() - before.double()).abs().max().item()
    return {"absolute": largest, "relative": largest / before.double().square().mean().sqrt().item()}


def retrofit(run: Run, state: dict[str, Tensor], text: Text, inner: str, device: str) -> dict[str, Any]:
    """One run of the table of retrofits.

    Args:
        run: its settings.
        state: weights of the plain model that was trained before.
        text: to train and validate on.
        inner: the compiler behind both backends.
        device: to train on.

    Returns:
        That of ``train``; the loss at the beginning; how far the outputs moved where the model was converted and where
        the scale was changed.
    """
    size = run.size
    batches = validation_batches(text.validation, size.batch, size.length, run.recipe.validation_batches)
    if run.options is None:
        trained = Trained(size, None, inner, device)
        trained.set_plain(state)
        return {"begins_at": round(trained.validate(batches), 6), **train(trained, run, text)}
    before = Trained(size, None, "eager", device)
    before.set_plain(state)
    expected = logits(before, batches[:_BATCHES])
    scales = run.options["scales"]
    converted = Converted(run, scales[0], inner, device)
    converted.trained.set_plain(state)
    moved = {f"to {scales[0]}": deviation(expected, logits(converted.trained, batches[:_BATCHES]))}

    def change() -> None:
        there = logits(converted.trained, batches[:_BATCHES])
        converted.change(scales[1])
        moved[f"{scales[0]} to {scales[1]}"] = deviation(there, logits(converted.trained, batches[:_BATCHES]))

    begins_at = round(converted.trained.validate(batches), 6)
    result = train(converted.trained, run, text, change if len(scales) > 1 else None)
    return {"begins_at": begins_at, **result, "moved": moved}
