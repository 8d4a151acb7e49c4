"""What ``regions=True`` saves before the first training step, and what it costs in every step after it.

    python -m kernels.benchmarks.regions first --layers 12 36
    python -m kernels.benchmarks.regions steady --layers 6 --width 768 --tokens 512
    python -m kernels.benchmarks.regions steady --layers 6 --width 768 --tokens 512 --forms layers "whole layers"

``first``: from ``prepare`` to the end of the first backward, each form in a process of its own with empty caches: the
plain model under torch.compile, AttnRes as one graph, and in regions; then all three layer by layer. Processor time is
that of the process, with its threads, and of the C++ compilers it starts. ``steady``: two forms in one process, step by
step in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate

FORMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "whole": {},
    "regions": {"regions": True},
    "plain layers": None,
    "whole layers": {"regions": False},
    "layers": {},
}
"""Options of the backend; None for the plain model. "layers": each is compiled by itself."""

BURN_IN = 3


@dataclass(frozen=True)
class Shape:
    """Of a model like GPT-2 and its tokens; inner: the compiler behind both backends."""

    layers: int
    width: int
    tokens: int
    batch: int
    inner: str


def model_and_ids(shape: Shape) -> tuple[Any, torch.Tensor]:
    """A model without dropout, and tokens for it, ``[batch, tokens]``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    sizes = {"n_layer": shape.layers, "n_embd": shape.width, "n_head": shape.width // 64, "vocab_size": 1024}
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=shape.tokens, **off))
    # Without it, transformers logs a warning at the first call, where a graph breaks.
    model.loss_type = "ForCausalLM"
    return model, torch.randint(0, 1024, (shape.batch, shape.tokens))


def compiled_step(form: str, shape: Shape) -> Callable[[], None]:
    """A training step without an optimizer, prepared and compiled at its first call.

    Args:
        form: a name of FORMS.
        shape: of the model.
    """
    import attnres_compile

    model, ids = model_and_ids(shape)
    options = FORMS[form]

    def prepare_and_compile() -> None:
        compiled_modules = model.transformer.h if form.endswith("layers") else [model]
        if options is not None:
            attnres_compile.prepare(model, kwargs={"input_ids": ids, "labels": ids})
        for module in compiled_modules:
            if options is None:
                module.compile(backend=shape.inner)
            else:
                module.compile(backend="attnres", options=options | {"inner": shape.inner})

    compiled: list[bool] = []

    def step() -> None:
        if not compiled:
            prepare_and_compile()
            compiled.append(True)
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def processor_time() -> float:
    """Seconds of this process and of the ended ones that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def first_step(form: str, shape: Shape) -> dict[str, Any]:
    """Seconds to the end of the first training step, in this process.

    Args:
        form: a name of FORMS.
        shape: of the model.
    """
    step = compiled_step(form, shape)
    start, used = time.perf_counter(), processor_time()
    step()
    found = {"processor": processor_time() - used, "wall": time.perf_counter() - start}
    return {"form": form} | found


def first_step_apart(form: str, shape: Shape, threads: int) -> dict[str, Any]:
    """``first_step`` in a fresh process with empty caches.

    Args:
        form: a name of FORMS.
        shape: of the model.
        threads: of torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
        words = ["one", "--form", form, "--threads", threads]
        words += [word for name, value in asdict(shape).items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "kernels.benchmarks.regions", *map(str, words)]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def shape_of(given: argparse.Namespace, layers: int) -> Shape:
    """What a command line asks for, at one depth.

    Args:
        given: the command line.
        layers: of the model.
    """
    return Shape(layers, given.width, given.tokens, given.batch, given.inner)


def run_first(given: argparse.Namespace) -> None:
    """Print a table of the first step of each form and depth, and its ratios.

    Args:
        given: the command line.
    """
    rows = []
    for layers in given.layers:
        plain: dict[str, Any] = {}
        for form in given.forms or FORMS:
            found = first_step_apart(form, shape_of(given, layers), given.threads)
            plain = found if FORMS[form] is None else plain
            over = [f"{found[clock] / plain[clock]:.3f}" if plain else "" for clock in ("processor", "wall")]
            rows.append([layers, form, f"{found['processor']:.1f}", f"{found['wall']:.1f}", *over])
            print(f"{layers} layers, {form}: {found['processor']:.1f} s of processors", file=sys.stderr, flush=True)
    print(
        tabulate(
            rows,
            headers=["layers", "form", "processor s", "wall s", "over plain", "wall over plain"],
            disable_numparse=True,
        )
    )


def run_steady(given: argparse.Namespace) -> None:
    """Print the ratio of a step of one form over that of another one.

    Args:
        given: the command line.
    """
    (layers,), (first, second) = given.layers, given.forms or ("regions", "whole")
    steps = {form: compiled_step(form, shape_of(given, layers)) for form in (second, first)}
    clocks = {"processor": time.process_time, "wall": time.perf_counter}
    samples: dict[str, list[dict[str, float]]] = {form: [] for form in steps}
    for turn in range(BURN_IN + given.rounds):
        for form in sorted(steps, reverse=turn % 2 == 1):
            before = {name: clock() for name, clock in clocks.items()}
            steps[form]()
            if turn >= BURN_IN:
                samples[form].append({name: clock() - before[name] for name, clock in clocks.items()})
    for name in clocks:
        ratios = sorted(a[name] / b[name] for a, b in zip(samples[first], samples[second], strict=True))
        middle = [1e3 * statistics.median(sample[name] for sample in samples[form]) for form in (first, second)]
        print(
            f"training step, {name}: {first} {middle[0]:.1f} ms, {second} {middle[1]:.1f} ms; ratio "
            f"{statistics.median(ratios):.4f} [{ratios[len(ratios) // 4]:.4f}, {ratios[-1 - len(ratios) // 4]:.4f}], "
            f"middle half of {given.rounds} pairs"
        )


def main(words: Sequence[str]) -> None:
    """Measure one of both.

    Args:
        words: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m kernels.benchmarks.regions", description=__doc__)
    parser.add_argument("what", choices=("first", "steady", "one"), help="one: a process of `first`")
    parser.add_argument("--layers", type=int, nargs="+", default=[12])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--inner", choices=("inductor", "aot_eager"), default="inductor", help="of both backends")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="all of `first`, by default; two of `steady`")
    parser.add_argument("--form", choices=FORMS, help="of `one`")
    parser.add_argument("--rounds", type=int, default=21, help="of `steady`")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    if given.what == "one":
        (layers,) = given.layers
        print(json.dumps(first_step(given.form, shape_of(given, layers))))
    elif given.what == "first":
        run_first(given)
    else:
        run_steady(given)


if __name__ == "__main__":
    main(sys.argv[1:])
