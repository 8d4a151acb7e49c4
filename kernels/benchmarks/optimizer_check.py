"""What the check before every optimizer step costs in place: inside AdamW's step over about 200 parameters.

    python -m kernels.benchmarks.optimizer_check

Hooks before a step run in the order in which they were registered. One is registered here before the check
is, and one after it, so the check runs between the two. The first line is a process without a prepared model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

_marks = {"before": 0.0, "after": 0.0}


def _mark_before(*given: Any) -> None:
    _marks["before"] = time.perf_counter()


def _mark_after(*given: Any) -> None:
    _marks["after"] = time.perf_counter()


class Sublayer(nn.Module):
    """A PreNorm MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return out


def seconds_of_steps(prepare: bool, steps: int, sublayers: int) -> tuple[list[float], list[float], int]:
    """Seconds between the two marks, and of the whole step, of each step; and how many parameters it has.

    Args:
        prepare: rewrite the model, so that the check has something to check.
        steps: that are kept.
        sublayers: of the model.
    """
    import attnres_compile

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), *(Sublayer(64) for _ in range(sublayers)), nn.LayerNorm(64))
    x = torch.randn(2, 8, 64)
    if prepare:
        attnres_compile.prepare(model, (x,), num_blocks=4, inner="eager")
        model.compile(backend="attnres")
        groups = attnres_compile.param_groups(model, lr=1e-4, weight_decay=0.1)
        optimizer = torch.optim.AdamW(groups, foreach=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    checks, whole = [], []
    for step in range(50 + steps):
        model(x).sum().backward()
        start = time.perf_counter()
        optimizer.step()
        if step >= 50:
            whole.append(time.perf_counter() - start)
            checks.append(_marks["after"] - _marks["before"])
        optimizer.zero_grad()
    return checks, whole, sum(len(group["params"]) for group in optimizer.param_groups)


def main(words: Sequence[str]) -> None:
    """Measure and print quartiles in microseconds.

    Args:
        words: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m kernels.benchmarks.optimizer_check", description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sublayers", type=int, default=24)
    given = parser.parse_args(words)
    from attnres_compile.model.optimizer_check import watch_optimizers

    torch.set_num_threads(1)
    before = register_optimizer_step_pre_hook(_mark_before)
    watch_optimizers()  # as the first prepared model does
    after = register_optimizer_step_pre_hook(_mark_after)
    try:
        for prepare, name in ((False, "no prepared model"), (True, "prepared")):
            checks, whole, count = seconds_of_steps(prepare, given.steps, given.sublayers)
            low, middle, high = (f"{1e6 * quartile:.1f}" for quartile in statistics.quantiles(checks, n=4))
            step = 1e6 * statistics.median(whole)
            print(f"{name}, {count} parameters: check {middle} us [{low}, {high}] of a step of {step:.0f} us")
    finally:
        before.remove()
        after.remove()


if __name__ == "__main__":
    main(sys.argv[1:])
