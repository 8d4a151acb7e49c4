"""A small model of the shape that torchtitan has, prepared, and its plans of tensor and sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional

import attnres_compile as ac
from tests.end_to_end.guarded_model import randomize

VOCABULARY, WIDTH, HEADS, TOKENS, LAYERS = 32, 16, 4, 8, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        heads = (w(x).view(batch, tokens, -1, WIDTH // HEADS).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.wo(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.w2 = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.feed_forward = Attention(), FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class Titan(nn.Module):
    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleDict({str(index): Layer() for index in range(layers)})
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h = layer(h)
        return self.output(self.norm(h))


def ids(rank: int = 0, step: int = 0, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randint(VOCABULARY, (rows, TOKENS), generator=generator)


def build(dtype: torch.dtype = torch.float64) -> Titan:
    torch.manual_seed(0)
    return Titan().to(dtype)


def prepare(model: nn.Module, **options: Any) -> None:
    ac.prepare(model, (ids(),), **{"num_blocks": 2, "inner": "eager", **options})


def prepared(dtype: torch.dtype = torch.float64, **options: Any) -> Titan:
    model = build(dtype)
    prepare(model, **options)
    randomize(model)
    return model


def tensor_parallel(model: nn.Module, mesh: DeviceMesh, **more: ParallelStyle) -> None:
    """Every rank has all tokens."""
    plan: dict[str, ParallelStyle] = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate()),
        "output": ColwiseParallel(output_layouts=Replicate()),
        **more,
    }
    for name in _layers(model):
        plan |= _matrices(name, Replicate())
    parallelize_module(model, mesh, plan)


def sequence_parallel(model: nn.Module, mesh: DeviceMesh, local: bool = True, **more: ParallelStyle) -> None:
    """The plan of torchtitan. local: the stream is the plain tensor that a rank holds, and else a DTensor."""
    plan: dict[str, ParallelStyle] = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=local),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        **more,
    }
    for name in _layers(model):
        plan |= {f"{name}.{norm}": SequenceParallel() for norm in ("attention_norm", "ffn_norm")}
        for part in ("attention", "feed_forward"):
            plan[f"{name}.{part}"] = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        plan |= _matrices(name, Shard(1), local)
    parallelize_module(model, mesh, plan)


def _layers(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, Layer)]


def _matrices(layer: str, written: Any, local: bool = True) -> dict[str, ParallelStyle]:
    rows = {
        name: RowwiseParallel(output_layouts=written, use_local_output=local)
        for name in (f"{layer}.attention.wo", f"{layer}.feed_forward.w2")
    }
    columns = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")
    return rows | {f"{layer}.{name}": ColwiseParallel() for name in columns}


def by_hand(model: nn.Module, tokens: Tensor) -> Tensor:
    """Block AttnRes (paper equations 1 to 6) of the plain model, with the queries and key norms that it has now."""
    (stream,) = model.attnres.plan.streams
    reads = iter(model.attnres.streams[0].reads)
    blocks, partial, written = [model.tok_embeddings(tokens)], None, 0

    def read() -> Tensor:
        sources = blocks if partial is None else [*blocks, partial]
        if len(sources) == 1:
            return sources[0]
        parameters = next(reads)
        values = torch.stack(sources)
        keys = values * (values.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * parameters.key_norm.weight
        return ((keys @ parameters.query).softmax(0).unsqueeze(-1) * values).sum(0)

    for layer in model.layers.values():
        for norm, part in ((layer.attention_norm, layer.attention), (layer.ffn_norm, layer.feed_forward)):
            added = part(norm(read()))
            partial, written = added if partial is None else partial + added, written + 1
            if written % stream.block_size == 0:
                blocks, partial = [*blocks, partial], None
    return model.output(model.norm(read()))


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
