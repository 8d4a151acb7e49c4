"""What ``make demo`` runs: the 124M GPT-2 architecture planned and counted, a small one proved right, trained, timed.

python examples/demo.py           # within 3 minutes on two CPU cores
python examples/demo.py --full    # also proves and times the 124M architecture, which takes about 10 minutes
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time

import torch
from stdlib_bytes import batches, standard_library_bytes
from transformers import AutoModelForCausalLM, GPT2Config

import attnres_compile
from attnres_compile.cli.progress import progress_bar
from attnres_compile.measure.model_pair import model_call
from attnres_compile.measure.timing import compare
from attnres_compile.progress import each, stage, task

SMALL = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128}
TINY = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32}
OF_BYTES = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None}
ROWS, SHOWN = 8, 10
"""Rows of a training step, and how many losses of the run are shown."""


def gpt2(**sizes: int | None) -> torch.nn.Module:
    """A GPT-2 with random weights; without dropout, so that both sides see the same."""
    without_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    model = AutoModelForCausalLM.from_config(GPT2Config(**sizes, **without_dropout, use_cache=False))
    model.loss_type = "ForCausalLM"  # where it is None, transformers logs a warning, which breaks the graph
    return model


def plan_and_count(arguments: argparse.Namespace) -> None:
    """The plan and the counted rows of the 124M architecture, which needs no weights for that."""
    with torch.device("meta"):
        model = gpt2(**(TINY | OF_BYTES if arguments.tiny else {}))
        ids = torch.zeros(1, model.config.n_positions // 2, dtype=torch.long)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    heading(f"1. What is rewritten: GPT-2, {parameters:,} parameters, without weights")
    print(attnres_compile.explain(model, kwargs={"input_ids": ids}, num_blocks=arguments.num_blocks).plan)
    heading("2. What it costs, COUNTED on the graphs of the same model: no device is involved, nothing is timed")
    with task("counting"):
        print(attnres_compile.overhead(model, kwargs={"input_ids": ids}, num_blocks=arguments.num_blocks))


def verify(model: torch.nn.Module, ids: torch.Tensor, arguments: argparse.Namespace) -> bool:
    """Print the checks of the rewrite, and whether they pass."""
    with task("verifying"):
        checked = attnres_compile.verify(model, kwargs={"input_ids": ids}, num_blocks=arguments.num_blocks)
    print(checked)
    return checked.passed


def train(arguments: argparse.Namespace, plain: torch.nn.Module, attnres: torch.nn.Module) -> None:
    """Train both on the same windows of the standard library's source, and print their losses side by side."""
    sides = {"plain": plain, "AttnRes": attnres}
    # Without weight decay, which param_groups would keep from the queries and key norms.
    optimizers = {
        name: torch.optim.AdamW(side.parameters(), lr=arguments.lr, weight_decay=0.0) for name, side in sides.items()
    }
    data = batches(standard_library_bytes(), rows=ROWS, length=plain.config.n_positions)
    losses: dict[str, list[float]] = {name: [] for name in sides}
    every = max(1, arguments.steps // SHOWN)
    print(f"steps          plain   AttnRes   (training loss, mean of {every} steps; log 256 = 5.55 is a blind guess)")
    for step in each(range(arguments.steps), "training step of both"):
        ids = next(data)
        for name, side in sides.items():
            stage(f"compiling {name} for training" if step == 0 else "")
            loss = side(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            losses[name].append(loss.item())
        if (step + 1) % every == 0:
            shown = "   ".join(f"{statistics.mean(of[-every:]):7.3f}" for of in losses.values())
            print(f"{step + 2 - every:4d} to {step + 1:4d}  {shown}", flush=True)
    queries = [value for name, value in attnres.named_parameters() if name.endswith("query")]
    largest = max(query.abs().max().item() for query in queries)
    print(f"{len(queries)} pseudo-queries started at zero; their largest entry is now {largest:.4f}.")
    print("One seed and a minute of training show that it learns, and not which of the two is better.")


def measure(arguments: argparse.Namespace, plain: torch.nn.Module, attnres: torch.nn.Module) -> None:
    """Time the compiled training steps of both, in turn, in this process."""
    ids = next(batches(standard_library_bytes(), rows=ROWS, length=plain.config.n_positions, seed=1))
    kwargs = {"input_ids": ids, "labels": ids}
    steps = [model_call(side, (), kwargs, is_training=True) for side in (plain, attnres)]
    timed = compare(*steps, rounds=arguments.rounds)
    print(
        f"training step, compiled: plain {1000 * timed.baseline.median:.1f} ms, AttnRes "
        f"{1000 * timed.candidate.median:.1f} ms\nratio {timed.ratio} with {100 * timed.ratio.confidence:.0f} % "
        f"confidence, {arguments.rounds} paired rounds\nmeasured on {timed.device}, {timed.threads} threads"
    )
    print("The narrower the model, the larger the share of the reads: README.md has the ratios of the 124M model.")


def measure_full_size(arguments: argparse.Namespace) -> bool:
    """Prove the 124M architecture right, and time its forward and training step; whether it is right."""
    torch.compiler.reset()  # what was compiled for the small model is of no more use
    model = gpt2(**(TINY | OF_BYTES if arguments.tiny else {})).eval()
    ids = next(batches(standard_library_bytes(), rows=1, length=model.config.n_positions // 2))
    heading("6. --full: is the rewrite right, of the large model?")
    passed = verify(model, ids[:, :64], arguments)
    heading("7. --full: what it costs, with latencies MEASURED on this machine: compiles four models, then times them")
    options = {"num_blocks": arguments.num_blocks, "inner": arguments.inner}
    training = {"input_ids": ids, "labels": ids}
    given = {"kwargs": {"input_ids": ids}, "training_kwargs": training, "rounds": arguments.rounds}
    print(attnres_compile.overhead(model, measure=True, **given, **options))
    return passed


def heading(text: str) -> None:
    print(f"\n=== {text} [after {time.perf_counter() - START:.0f} s] ===\n", flush=True)


def demo(arguments: argparse.Namespace) -> bool:
    """All parts in turn; whether the rewrites were right."""
    torch.manual_seed(0)
    plan_and_count(arguments)
    plain = gpt2(**(TINY if arguments.tiny else SMALL), **OF_BYTES)
    ids = next(batches(standard_library_bytes(), rows=1, length=plain.config.n_positions))
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    heading(f"3. Is the rewrite right? A GPT-2 of {parameters:,} parameters, on bytes of the standard library")
    passed = verify(plain, ids, arguments)
    heading(f"4. Does it learn? {arguments.steps} steps of {ROWS} x {ids.shape[1]} bytes, from the same weights")
    attnres = copy.deepcopy(plain)
    options = {"num_blocks": min(4, arguments.num_blocks), "inner": arguments.inner}
    attnres_compile.prepare(attnres, kwargs={"input_ids": ids}, **options)
    attnres.compile(backend="attnres")
    plain.compile(backend=arguments.inner)
    train(arguments, plain, attnres)
    heading("5. What does it cost here? MEASURED: the two compiled models, in turn")
    measure(arguments, plain, attnres)
    if arguments.full:
        passed &= measure_full_size(arguments)
    heading("Done")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also prove and time the 124M architecture")
    parser.add_argument("--tiny", action="store_true", help="every model as small as can be")
    parser.add_argument("--steps", type=int, default=150, help="of the training run")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rounds", type=int, default=10, help="paired samples of each latency")
    parser.add_argument("--num-blocks", type=int, default=8)
    parser.add_argument("--inner", default="inductor", choices=["inductor", "aot_eager", "eager"])
    parser.add_argument("--quiet", action="store_true", help="no progress bar, which only a terminal shows anyway")
    arguments = parser.parse_args()
    with progress_bar("demo", arguments.quiet):
        passed = demo(arguments)
    if not passed:
        print("the verification failed: see the checks above", file=sys.stderr)
    return int(not passed)


if __name__ == "__main__":
    START = time.perf_counter()
    sys.exit(main())
