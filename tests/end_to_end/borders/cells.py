"""Checkpoints of layers, by ways to cut a model into graphs; writes docs/benchmarks/borders.json.

python -m tests.end_to_end.borders.cells                     # all cells
python -m tests.end_to_end.borders.cells --only "gpt2, 2"    # those with these words in their names, written anew

Each cell prepares a small model of transformers in fp64 and makes one step: its loss and every gradient, those of the
queries too, are held against those of the whole graph without checkpoints, in one process. Two processes share the
cells, and make those of FSDP2 together, on one batch. Where a cell does not hold, the plain model is compiled the same
way by torch alone; if that fails as well, the record has torch's words.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import attnres_compile as ac
from tests.end_to_end.borders.models import IDS, layers, plain, prepared
from tests.end_to_end.checkpointed import keep_products
from tests.processes import run_ranks

RECORD = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "borders.json"
KIND = "checkpoints by borders"
MODELS = ("gpt2", "llama", "qwen3")
LAYERS, TOLERANCE, PROCESSES = 4, 1e-10, 2
BLOCKS: dict[str, dict[str, int]] = {
    "2 blocks": {"num_blocks": 2},
    "4 blocks": {"num_blocks": 4},
    "ends inside a layer": {"block_size": 3},
}
Step = tuple[Tensor, dict[str, Tensor]]


def _checkpointed(model: nn.Module, stride: int = 1, **options: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for number, layer in enumerate(layers(model)):
        layer.gradient_checkpointing = number % stride == 0


_selective = functools.partial(create_selective_checkpoint_contexts, keep_products)
CHECKPOINTS: dict[str, Callable[[nn.Module], None]] = {
    "none": lambda model: None,
    "reentrant": functools.partial(_checkpointed, use_reentrant=True),
    "not reentrant": functools.partial(_checkpointed, use_reentrant=False),
    "every 2nd": functools.partial(_checkpointed, stride=2, use_reentrant=False),
    "selective": functools.partial(_checkpointed, use_reentrant=False, context_fn=_selective),
}


def _per_layer(model: nn.Module, **how: Any) -> None:
    for layer in layers(model):
        layer.compile(**how)


def _broken(model: nn.Module, **how: Any) -> None:
    layers(model)[1].register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    model.compile(**how)


def _sharded(model: nn.Module) -> None:
    for layer in layers(model):
        fully_shard(layer)
    fully_shard(model)


def _sharded_whole(model: nn.Module, **how: Any) -> None:
    _sharded(model)
    model.compile(**how)


def _sharded_per_layer(model: nn.Module, **how: Any) -> None:
    _per_layer(model, **how)
    _sharded(model)


CUTS: dict[str, Callable[..., None]] = {
    "whole": lambda model, **how: model.compile(**how, fullgraph=True),
    "per layer": _per_layer,
    "break at layer 1": _broken,
    "FSDP2, whole": _sharded_whole,
    "FSDP2, per layer": _sharded_per_layer,
}
OURS = {"backend": "attnres", "options": {"inner": "aot_eager"}}
TORCHS = {"backend": "aot_eager"}


def cells() -> list[str]:
    """All names: model, blocks, checkpoint, cut."""
    return list(map(", ".join, itertools.product(MODELS, BLOCKS, CHECKPOINTS, map(_one_word, CUTS))))


def _one_word(cut: str) -> str:
    return cut.replace(", ", " ")


def step(model: nn.Module) -> Step:
    """Loss and gradients, whole on every process."""
    logits = model(input_ids=IDS).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten())
    loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    whole = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in found.items()}
    return loss.detach(), whole


@functools.cache
def wanted(name: str, blocks: str) -> Step:
    """The step of the whole graph without checkpoints."""
    torch.compiler.reset()
    model = prepared(name, LAYERS, **BLOCKS[blocks])
    CUTS["whole"](model, **OURS)
    return step(model)


def difference(found: Step, expected: Step) -> float:
    """The largest of loss and gradients."""
    assert found[1].keys() == expected[1].keys(), set(found[1]) ^ set(expected[1])
    pairs = [(found[0], expected[0]), *((found[1][name], one) for name, one in expected[1].items())]
    return max(float((a - b).abs().max()) for a, b in pairs)


def measured(name: str, blocks: str, checkpoint: str, cut: str) -> dict[str, object]:
    """What one cell gives; with an error, whether torch alone has one as well."""
    expected = wanted(name, blocks)
    torch.compiler.reset()
    try:
        model = prepared(name, LAYERS, **BLOCKS[blocks])
        CHECKPOINTS[checkpoint](model)
        CUTS[cut](model, **OURS)
        found = difference(step(model), expected)
        status = ac.status(model)
        assert (status.state, status.plain_calls, status.refused_calls) == ("rewritten", 0, 0), status
        return {"holds": found <= TOLERANCE, "difference": found}
    except Exception as error:  # what cannot be is in the record
        words = _words(error)
    torch.compiler.reset()
    try:
        model = plain(name, LAYERS)
        CHECKPOINTS[checkpoint](model)
        CUTS[cut](model, **TORCHS)
        step(model)
    except Exception as error:
        return {"holds": False, "error": words, "torch alone": _words(error)}
    return {"holds": False, "error": words}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"


def train(rank: int, size: int, store: str, asked: Sequence[str], folder: str) -> None:
    """The cells of one process: all of FSDP2's, and its share of the others."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    alone = [cell for cell in asked if "FSDP2" not in cell]
    by_word = {_one_word(cut): cut for cut in CUTS}
    for cell in [*alone[rank::size], *(cell for cell in asked if "FSDP2" in cell)]:
        name, blocks, checkpoint, cut = cell.split(", ")
        found = measured(name, blocks, checkpoint, by_word[cut])
        Path(folder, f"{cell}.{rank}").write_text(json.dumps(found))
        print(cell, found, flush=True)
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORDS", help="that the name of a cell begins with or holds")
    only = parser.parse_args().only
    asked = [cell for cell in cells() if only in cell]
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"kind": KIND, "cells": {}}
    record |= {"torch": torch.__version__, "processes": PROCESSES, "tolerance": TOLERANCE, "layers": LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(train, PROCESSES, str(Path(folder, "store")), asked, folder, timeout=3 * 3600)
        for cell in asked:
            found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob(f"{cell}.*"))]
            record["cells"][cell] = next((one for one in found if not one["holds"]), found[0])
    record["cells"] = {cell: record["cells"][cell] for cell in cells() if cell in record["cells"]}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
