"""Numbers of a launch that decide how fast it is and not what it computes, chosen by timing if ATTNRES_AUTOTUNE=1.

Each launch comes with its choices, the one of the static table first. Without the variable that one is taken; with it
the kernel is a ``triton.autotune`` over all of them, timed once for each width and dtypes, at the first launch. In a
compiled graph Inductor is what times them, in its own way: at the graph's first call, once per graph.

What Inductor takes of ``triton.autotune`` (``torch/_higher_order_ops/triton_kernel_wrap.py``,
``TritonHOPifier.init_variable``) is configs, keys and what to restore or to zero: no hooks, no times of warmup. A prune
function or a number of warps in the call would make it a new autotuner in each call. So there are none of these here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from attnres_kernels.errors import AttnResError

AUTOTUNE_VARIABLE = "ATTNRES_AUTOTUNE"
"""Whether launches are tuned."""

KEYS = ("width", "reads")
"""Arguments for each value of which a kernel is tuned anew, where it has them; Triton adds the dtypes of all tensors.

Not the number of tokens: each new one would be timed again, in serving as in training, and a graph that Inductor
compiled for any number is tuned once, too.
"""


class TuningError(AttnResError):
    """Kernels cannot be tuned as they are to be."""


@dataclass(frozen=True)
class Choice:
    """One way to launch a kernel.

    warps: of one program; constants: compile-time arguments by name, the tile among them.
    """

    warps: int
    constants: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, warps: int, **constants: int) -> Choice:
        return cls(warps, tuple(constants.items()))

    def numbers(self) -> dict[str, int]:
        """All of them, as a launch takes them."""
        return {**dict(self.constants), "num_warps": self.warps}


def is_on() -> bool:
    """Whether launches are tuned. Raises TuningError for a value of the variable that is neither yes nor no."""
    asked = os.environ.get(AUTOTUNE_VARIABLE, "")
    if asked not in ("", "0", "1"):
        raise TuningError(f"{AUTOTUNE_VARIABLE}={asked!r} is neither '0' nor '1'; set one of them, or unset it.")
    return asked == "1"


@cache
def tuned(kernel: Any, choices: tuple[Choice, ...]) -> Any:
    """A kernel as a ``triton.autotune``; one object for equal arguments, which keeps its times.

    Args:
        kernel: a ``triton.jit`` function.
        choices: that it is timed with; each must leave alone what a launch reads, since it is launched many times.
    """
    import triton

    configs = [triton.Config(dict(choice.constants), num_warps=choice.warps) for choice in choices]
    keys = [name for name in KEYS if name in kernel.arg_names]
    tuner = triton.autotune(configs, keys, do_bench=lambda call, quantiles: measure(call, quantiles))(kernel)
    _TUNERS.append(tuner)
    return tuner


_TUNERS: list[Any] = []


def measure(call: Callable[[], None], quantiles: Sequence[float]) -> list[float]:
    """Times of a call in ms, as Triton takes them on a GPU.

    Args:
        call: launches a kernel.
        quantiles: of the times.

    Raises:
        TuningError: there is no GPU, or a CUDA graph is being captured: what is timed would become part of the graph,
            and to capture what happens to be the static choice would leave the graph untuned for good.
    """
    import triton

    if not torch.cuda.is_available():
        raise TuningError(f"{AUTOTUNE_VARIABLE}=1 compares times on a GPU, and there is none; unset it.")
    if torch.cuda.is_current_stream_capturing():
        raise TuningError(
            "a kernel that was not tuned yet was launched while a CUDA graph is captured; run the same shapes once "
            f"before the capture, or unset {AUTOTUNE_VARIABLE}."
        )
    times: list[float] = triton.runtime.driver.active.get_benchmarker()(call, quantiles=quantiles)
    return times


# What was chosen


def tuned_kernels() -> list[dict[str, Any]]:
    """What was tuned in this process, as plain data: name of the kernel, key, and the chosen and the static numbers.

    by: "triton" for a launch on its own, "inductor" for one in a compiled graph, whose key is its dtypes only.
    """
    launched = [
        {"kernel": tuner.base_fn.__name__, "by": "triton", "key": _key(tuner, key), **_compared(config, tuner)}
        for tuner in _TUNERS
        for key, config in tuner.cache.items()
    ]
    return launched + [
        {"kernel": inner.fn.__name__, "by": "inductor", "key": _dtypes(inner), **_compared(config, tuner)}
        for inner, config in _of_inductor()
        if (tuner := _tuner_of(inner.fn.__name__, config)) is not None
    ]


def _key(tuner: Any, key: tuple[Any, ...]) -> dict[str, Any]:
    named = dict(zip(tuner.keys, key, strict=False))
    return {**named, "dtypes": sorted({str(dtype).removeprefix("torch.") for dtype in key[len(named) :]})}


def _compared(config: Any, tuner: Any) -> dict[str, dict[str, int]]:
    return {"chosen": _numbers(config), "static": _numbers(tuner.configs[0])}


def _numbers(config: Any) -> dict[str, int]:
    return {**config.kwargs, "num_warps": config.num_warps}


def _tuner_of(name: str, config: Any) -> Any:
    """Ours with these numbers among its choices; None if the kernel is not ours."""
    of_name = (tuner for tuner in _TUNERS if tuner.base_fn.__name__ == name)
    return next((x for x in of_name if _numbers(config) in map(_numbers, x.configs)), None)


def _dtypes(inner: Any) -> dict[str, list[str]]:
    pointers = {kind[1:] for kind in inner.triton_meta["signature"].values() if kind.startswith("*")}
    return {"dtypes": sorted(pointers)}


def _of_inductor() -> Iterator[tuple[Any, Any]]:
    """Autotuners in the modules that Inductor wrote in this process, and what each chose, once it has run."""
    codecache, heuristics = (
        sys.modules.get(f"torch._inductor.{name}") for name in ("codecache", "runtime.triton_heuristics")
    )
    if codecache is None or heuristics is None:
        return
    kind = heuristics.CachingAutotuner
    found = {id(x): x for m in codecache.PyCodeCache.modules for x in vars(m).values() if isinstance(x, kind)}
    for inner in found.values():
        if len(inner.launchers) == 1:
            yield inner, inner.launchers[0].config
