"""One run: trained from its beginning to its end, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from attnres_compile.progress import each

from .grid import Recipe, Run
from .model import Trained
from .text import Text, training_batches, validation_batches

_PARTS = 10
"""Of a run, whose mean training losses are kept."""


class DivergedError(ArithmeticError):
    """A loss is no number."""


def optimizer_of(model: nn.Module, rate: float, recipe: Recipe) -> torch.optim.AdamW:
    """Matrices are decayed and vectors are not, in a plain model and in a prepared one alike.

    Args:
        model: whose parameters are trained.
        rate: the peak of the learning rate.
        recipe: of the runs.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=recipe.betas, fused=True)


def rate_at(step: int, steps: int, peak: float, warm_up: float) -> float:
    """Up in a straight line, and down to zero in another.

    Args:
        step: from 0.
        steps: in all.
        peak: of the rate.
        warm_up: share of the steps.
    """
    up = max(1, round(warm_up * steps))
    return peak * min((step + 1) / up, (steps - step) / max(1, steps - up))


def train(trained: Trained, run: Run, text: Text, halfway: Callable[[], None] | None = None) -> dict[str, Any]:
    """Train a model from where it is, and validate it.

    Args:
        trained: with the weights to begin with.
        run: its settings.
        text: to train and validate on.
        halfway: called before the step in the middle.

    Returns:
        Validation loss, training losses, seconds of the clock and of the processor in all steps but the first, which
        may compile.

    Raises:
        DivergedError.
    """
    size, recipe = run.size, run.recipe
    optimizer = optimizer_of(trained.model, run.rate, recipe)
    data = training_batches(text.training, size.batch, size.length, run.seed + 1000 * bool(run.pretrained))
    losses: list[float] = []
    clocks = [0.0, 0.0]
    for step in each(range(run.steps), f"step of {run.key}"):
        if halfway is not None and step == run.steps // 2:
            halfway()
            moved = optimizer_of(trained.model, run.rate, recipe)
            moved.load_state_dict(optimizer.state_dict())
            optimizer = moved
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, run.steps, run.rate, recipe.warm_up)
        if step == 1:
            clocks = [time.perf_counter(), time.process_time()]
        loss = trained.loss(next(data))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DivergedError(f"the loss of step {step} is {losses[-1]}")
    wall, processor = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    batches = validation_batches(text.validation, size.batch, size.length, recipe.validation_batches)
    return {
        "validation": round(trained.validate(batches), 6),
        "training": [round(value, 4) for value in _means(losses)],
        "seconds": round(wall, 2),
        "processor_seconds": round(processor, 2),
    }


def _means(losses: list[float]) -> list[float]:
    size = max(1, len(losses) // _PARTS)
    return [sum(part) / len(part) for part in (losses[at : at + size] for at in range(0, len(losses), size))]
