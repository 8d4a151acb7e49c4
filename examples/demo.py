"""What ``make demo`` runs: the real 124M GPT-2 architecture with Block Attention Residuals, on real bytes.

Prints the plan, the verification of the rewrite, and the overhead table with latencies measured here.
"""

import argparse
import time

import torch
from stdlib_bytes import batches, standard_library_bytes
from transformers import AutoModelForCausalLM, GPT2Config

import attnres_compile

TINY = {
    "n_layer": 4,
    "n_embd": 64,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small GPT-2 instead of the 124M architecture")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10, help="paired samples of each latency")
    parser.add_argument("--num-blocks", type=int, default=8)
    parser.add_argument("--inner", default="inductor", choices=["inductor", "aot_eager", "eager"])
    arguments = parser.parse_args()
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"\n=== {text} [after {time.perf_counter() - start:.0f} s] ===\n", flush=True)

    torch.manual_seed(0)
    config = GPT2Config(**(TINY if arguments.tiny else {}), use_cache=False)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.loss_type = "ForCausalLM"  # where it is None, transformers logs a warning, which breaks the graph
    ids = next(batches(standard_library_bytes(), rows=1, length=arguments.tokens))
    options = {"num_blocks": arguments.num_blocks, "inner": arguments.inner}

    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"GPT-2, {parameters:,} parameters, {arguments.tokens} bytes of Python source")
    print(attnres_compile.explain(model, kwargs={"input_ids": ids}, **options).plan)

    say("Is the rewrite right?")
    verification = attnres_compile.verify(model, kwargs={"input_ids": ids[:, :64]}, **options)
    print(verification)

    say("What does it cost? Compiling the plain and the AttnRes model, then timing them in turn")
    report = attnres_compile.overhead(
        model,
        kwargs={"input_ids": ids},
        training_kwargs={"input_ids": ids, "labels": ids},
        measure=True,
        rounds=arguments.rounds,
        **options,
    )
    print(report)
    say("Done")
    if not verification.passed:
        raise SystemExit("the verification failed: see the checks above")


if __name__ == "__main__":
    main()
