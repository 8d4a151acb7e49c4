"""What the recipes share: a small Llama, bytes to train it on, and the words of their command lines."""

import argparse

import torch
from stdlib_bytes import batches, standard_library_bytes
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
IDS = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def small_llama(layers: int = 4, seed: int = 0, **more) -> LlamaForCausalLM:
    """Of bytes, untrained, the same at every call."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(**{**SIZES, **IDS, "num_hidden_layers": layers, "max_position_embeddings": 256, **more})
    )


def byte_rows(rows: int = 4, length: int = 64, seed: int = 0):
    """Batches ``[rows, length]`` of bytes of the standard library, without end."""
    return batches(standard_library_bytes(), rows=rows, length=length, seed=seed)


def parsed(description: str, steps: int = 30, **more: int) -> argparse.Namespace:
    """``--steps``, ``--layers``, ``--inner``, the compiler behind the rewrite, and further numbers by their names."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--inner", default="inductor", choices=["inductor", "aot_eager", "eager"])
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()
