"""GPT-2 with Block Attention Residuals: prepare, compile, train a few steps on real bytes.

python examples/quickstart.py            # a small GPT-2, under a minute on a laptop
python examples/quickstart.py --full     # the 124M architecture
"""

import argparse

import torch
from stdlib_bytes import batches, standard_library_bytes
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2Config

import attnres_compile

SMALL = {
    "n_layer": 4,
    "n_embd": 128,
    "n_head": 4,
    "n_positions": 256,
    "vocab_size": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the 124M architecture instead of a small one")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--inner", default="inductor", choices=["inductor", "aot_eager", "eager"])
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(**({} if arguments.full else SMALL), use_cache=False))
    model.loss_type = "ForCausalLM"  # where it is None, transformers logs a warning, which breaks the graph
    data = batches(standard_library_bytes(), rows=4, length=128)
    ids = next(data)

    plan = attnres_compile.prepare(model, kwargs={"input_ids": ids}, num_blocks=4, inner=arguments.inner)
    print(plan)
    model.compile(backend="attnres")

    # The pseudo-queries and key norms are ordinary parameters by now, so the optimizer holds them.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    bar = tqdm(range(arguments.steps), "training; the first step compiles", disable=None)
    for step in bar:
        ids = next(data)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0 or step == arguments.steps - 1:
            bar.write(f"step {step:3d}  loss {loss.item():.3f}")

    queries = [value for name, value in model.named_parameters() if name.endswith("query")]
    largest = max(query.abs().max().item() for query in queries)
    print(f"{len(queries)} pseudo-queries started at zero; their largest entry is now {largest:.4f}")


if __name__ == "__main__":
    main()
