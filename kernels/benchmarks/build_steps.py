"""The worker of ``kernels.benchmarks.builds``: steps of one prepared model under the build that it imports.

It is started as a file, with the folders of a build first on the path, so it takes nothing from this repository but
what both builds have. Each line of its input is a number of steps to make; it answers with the seconds of processor
time and of the clock for each of them. To ``count`` it answers with what one step does, counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

WORKLOADS = ("decode", "training")


def decode_step(name: str, tokens: int) -> Callable[[], Any]:
    """One token of a model of transformers against its static cache.

    Args:
        name: that ``attnres inspect`` takes.
        tokens: the token attends to.
    """
    import attnres_compile
    from attnres_compile.measure.decode import decode_step
    from attnres_compile.models.load_options import LoadOptions
    from attnres_compile.models.source import load_model

    loaded = load_model(name, LoadOptions(batch=1, seq=tokens))
    attnres_compile.prepare(loaded.model, (), loaded.kwargs)
    step = decode_step(loaded.model, loaded.kwargs["input_ids"], graphs=False)
    loaded.model.compile(backend="attnres")
    return step


def training_step(name: str, tokens: int) -> Callable[[], Any]:
    """Loss, gradients and AdamW of a model of transformers.

    Args:
        name: that ``attnres inspect`` takes.
        tokens: of the one sequence.
    """
    import attnres_compile
    from attnres_compile.models.load_options import LoadOptions
    from attnres_compile.models.source import load_model

    loaded = load_model(name, LoadOptions(batch=1, seq=tokens))
    model, given = loaded.model, {**loaded.kwargs, "labels": loaded.kwargs["input_ids"]}
    attnres_compile.prepare(model, (), loaded.kwargs)
    model.train()
    model.compile(backend="attnres")
    optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=1e-4, weight_decay=0.0), foreach=True)

    def step() -> None:
        model(**given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def counts(step: Callable[[], Any]) -> dict[str, int]:
    """What a step does, counted: operators of torch, and calls of Python and C functions by the interpreter.

    Args:
        step: warm.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    found = {"operators": sum(event.name.startswith("aten::") for event in profile.events()), "call": 0, "c_call": 0}

    def note(_: FrameType, event: str, __: Any) -> None:
        if event in found:
            found[event] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(before)
    return found


def main() -> None:
    """``build_steps.py WORKLOAD MODEL TOKENS THREADS``: names its package, gets warm, and serves its input."""
    workload, name, tokens, threads = sys.argv[1:]
    import attnres_compile

    print("package", attnres_compile.__file__, flush=True)
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    step = {"decode": decode_step, "training": training_step}[workload](name, int(tokens))
    for _ in range(5):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "count":
            print(json.dumps(counts(step)), flush=True)
            continue
        found = []
        for _ in range(int(line)):
            wall, processor = time.perf_counter(), time.process_time()
            step()
            found.append((time.process_time() - processor, time.perf_counter() - wall))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
