"""The peak of a training step of a deep model with checkpointed layers, in counted storages."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel

import attnres_compile as ac

LAYERS, WIDTH, LENGTH, BATCH, BLOCKS = 24, 32, 32, 2, 8
IDS = torch.randint(0, 64, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
STREAM = BATCH * LENGTH * WIDTH * 4
"""Bytes of one state."""


class Storages(TorchDispatchMode):
    """Bytes of the storages that operators have made and that are alive, and the most there were."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return results

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def peak_of_a_step(prepared: bool) -> int:
    torch.manual_seed(0)
    torch.compiler.reset()
    sizes = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": 2, "n_positions": LENGTH, "vocab_size": 64}
    model = GPT2LMHeadModel(GPT2Config(use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes))
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if prepared:
        ac.prepare(model, kwargs={"input_ids": IDS, "labels": IDS}, num_blocks=BLOCKS)
    model.train().compile(
        backend="attnres" if prepared else "aot_eager", options={"inner": "aot_eager"} if prepared else None
    )
    model(input_ids=IDS, labels=IDS).loss.backward()
    model.zero_grad()
    with Storages() as storages:
        model(input_ids=IDS, labels=IDS).loss.backward()
    return storages.peak


def test_checkpointed_layers_keep_completed_blocks_once() -> None:
    plain, ours = peak_of_a_step(prepared=False), peak_of_a_step(prepared=True)
    # The root is kept by the plain model, too; gradients of the reads' parameters are no activations.
    added = 2 * (2 * LAYERS) * WIDTH * 4
    assert plain > LAYERS * STREAM
    assert ours - added <= plain + BLOCKS * STREAM + 0.02 * plain
