"""Train a small GPT-2 with Block Attention Residuals on real bytes, and look at what its reads attend to.

python examples/depth_weights.py                              # prints the table
python examples/depth_weights.py --save weights.json          # keeps the recording
attnres plot weights.json -o weights.png                      # draws it
"""

import argparse

import torch
from stdlib_bytes import batches, standard_library_bytes
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2Config

import attnres_compile

SMALL = {
    "n_embd": 64,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--recorded", type=int, default=20, help="steps at the end that are recorded")
    parser.add_argument("--save", metavar="FILE", help="write the recording as JSON")
    parser.add_argument("--inner", default="eager", choices=["inductor", "aot_eager", "eager"])
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(**SMALL, n_layer=arguments.layers, use_cache=False))
    model.loss_type = "ForCausalLM"  # where it is None, transformers logs a warning, which breaks the graph
    data = batches(standard_library_bytes(), rows=8, length=64)
    attnres_compile.prepare(model, kwargs={"input_ids": next(data)}, num_blocks=4, inner=arguments.inner)
    model.compile(backend="attnres")
    optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=3e-3, weight_decay=0.1))

    def train(steps: int, what: str) -> float:
        for _ in tqdm(range(steps), what, disable=None):
            ids = next(data)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    train(arguments.steps - arguments.recorded, "training")
    with attnres_compile.depth_weights(model) as weights:
        loss = train(arguments.recorded, "training, recorded")
    print(f"loss {loss:.3f} after {arguments.steps} steps, the last {arguments.recorded} of them recorded\n")
    print(weights)
    if arguments.save:
        weights.save(arguments.save)


if __name__ == "__main__":
    main()
