"""A small transformer with Block Attention Residuals, trained on a pipeline of processes.

torchrun --nproc-per-node 2 examples/pipeline.py                # two stages of two chunks each, on the CPU
torchrun --nproc-per-node 4 examples/pipeline.py --virtual 1    # four stages of one chunk each
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from stdlib_bytes import batches, standard_library_bytes
from torch import Tensor, nn
from tqdm import tqdm

import attnres_compile

WIDTH, LENGTH, ROWS = 64, 64, 8


class Sublayer(nn.Module):
    """Causal attention, or an MLP, behind its norm."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.attends = attends
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(WIDTH if attends else 3 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(self.norm(x))
        if self.attends:
            heads = [part.unflatten(-1, (4, -1)).transpose(1, 2) for part in inner.chunk(3, dim=-1)]
            inner = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        else:
            inner = F.gelu(inner)
        return self.down(inner)


class Transformer(nn.Module):
    """Embeddings, sublayers that add to one stream, norm and head. Nothing in it knows of stages."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.token = nn.Embedding(256, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.sublayers = nn.ModuleList(Sublayer(attends) for _ in range(layers) for attends in (True, False))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for sublayer in self.sublayers:
            x = x + sublayer(x)
        return self.head(self.norm(x))


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--virtual", type=int, default=2, help="chunks per process")
    parser.add_argument("--transfer", default="cached", choices=["cached", "naive"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--inner", default="eager", choices=["inductor", "eager"])
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # every process makes the same model and reads the same data
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.get_world_size()))
    data = batches(standard_library_bytes(), rows=ROWS, length=LENGTH)
    pipe = attnres_compile.pipeline(
        Transformer(arguments.layers),
        (next(data),),
        virtual=arguments.virtual,
        schedule="Interleaved1F1B",
        microbatches=4,
        loss_fn=next_token_loss,
        transfer=arguments.transfer,
        num_blocks=4,
        inner=arguments.inner,
    )
    if pipe.is_first:
        print(pipe, flush=True)
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=3e-3)
    bar = tqdm(range(arguments.steps), "training", disable=None if pipe.is_last else True)
    for step in bar:
        tokens, losses = next(data), []
        pipe.step(tokens, target=tokens, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
        if pipe.is_last and (step % 5 == 0 or step == arguments.steps - 1):
            bar.write(f"step {step:3d}  loss {torch.stack(losses).mean().item():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
