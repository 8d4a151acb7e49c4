"""The one place that touches private parts of torch.distributed.pipelining, tested by tests/attnres_compile/pipelines.

``PipelineStage`` knows tensors that come from the chunk before and go to the next one. A chunk under cached transfer
also reads blocks that its rank has kept, and their gradients must reach the chunk of this rank that kept them, before
that one's own backward. The order is a data dependency: the backward of an earlier chunk needs a gradient that comes
through every later one. So it is enough to step in at these points, in every schedule of torch:

- a forward is given the kept blocks as fresh leaves, in a keyword, and keeps what the plan says;
- after the backward of the inputs, gradients of those leaves go to the store, and what the store holds for a block
  that came over the wire is added to the gradient that goes back over it;
- before a backward, what the store holds for a block that was made here is added to the gradient of that output.

What a micro-batch was given and gave is what torch passes through these methods; where torch keeps it in between is
its own (``fwd_cache`` until 2.14, ``_forward_chunk_states`` in 2.15, which also lets go of outputs once they are sent).
The public ``register_forward_context`` of 2.15 is told the micro-batch, but neither inputs nor outputs.

Checked with torch 2.13 and 2.15. Under an older torch, making a stage is an error that says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage

from attnres_compile.pipelines.agreement import Agreement
from attnres_compile.pipelines.build import Chunks
from attnres_compile.pipelines.chunk_module import CACHED
from attnres_compile.pipelines.errors import PipelineSupportError
from attnres_compile.pipelines.store import BlockStore
from attnres_passes.ranks.transfers import ChunkPlan
from attnres_passes.torch_private.version import torch_version

OLDEST_TORCH = (2, 13)
HOOKS = (
    "forward_one_chunk",
    "backward_one_chunk",
    "backward_maybe_with_nosync",
    "forward_maybe_with_nosync",
    "_retrieve_recv_grads",
    "clear_runtime_states",
)
"""Methods of torch's stage that are overridden."""


def check_torch() -> None:
    """Raise PipelineSupportError under a torch whose stages this file does not know."""
    missing = [name for name in HOOKS if not callable(getattr(PipelineStage, name, None))]
    if torch_version() < OLDEST_TORCH or missing:
        oldest = ".".join(map(str, OLDEST_TORCH))
        lacking = f", and its PipelineStage has no {', '.join(missing)}" if missing else ""
        raise PipelineSupportError(
            f"pipelines were checked with torch {oldest}, and this is {torch.__version__}{lacking}; install torch "
            f"{oldest}."
        )


class ChunkStage(PipelineStage):
    """torch's stage for one chunk.

    Args:
        module: the chunk, or a wrapper such as DistributedDataParallel around it.
        chunk, chunks: its plan, and all chunks of the model.
        store: of the rank, shared by its chunks.
        agreement: gives the group and the device of the rank.
        splits_backward: whether the schedule runs the backward of inputs and weights apart.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        chunk: ChunkPlan,
        chunks: Chunks,
        store: BlockStore,
        agreement: Agreement,
        splits_backward: bool,
    ) -> None:
        super().__init__(
            module,
            chunk.index,
            len(chunks.plan.chunks),
            agreement.device,
            input_args=chunks.arrives(chunk),
            output_args=chunks.sends(chunk),
            group=agreement.group,
        )
        self.chunk, self.store, self.splits_backward = chunk, store, splits_backward
        later = [other for other in chunks.plan.of_rank(chunk.rank) if other.index > chunk.index]
        # The blocks that no later chunk of the rank reads.
        self.last_reads = tuple(block for block in chunk.cached if not any(block in other.cached for other in later))
        self._leaves: dict[int, dict[int, Tensor]] = {}
        self._arrived: tuple[Tensor, ...] = ()
        self._sent: tuple[Any, ...] = ()
        self._microbatch = -1

    def forward_one_chunk(
        self,
        fwd_chunk_id: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        save_forward_output: bool = True,
    ) -> Any:
        """Run the forward of a micro-batch with the kept blocks, and keep what the plan says.

        Args:
            fwd_chunk_id: of the micro-batch.
            args, kwargs, save_forward_output: those of torch.
        """
        records = bool(self.has_backward and torch.is_grad_enabled())
        leaves = tuple(self.store.leaf(fwd_chunk_id, block, records) for block in self.chunk.cached)
        given = {**(kwargs or {}), CACHED: leaves}
        output = super().forward_one_chunk(fwd_chunk_id, args, given, save_forward_output)
        for block in self.chunk.keeps:
            arrived = block in self.chunk.arrives
            value = (
                self._arrived[self.chunk.arrives.index(block)] if arrived else self._sent[self.chunk.sends.index(block)]
            )
            self.store.put(fwd_chunk_id, block, value)
        self._arrived, self._sent = (), ()
        if records:
            self._leaves[fwd_chunk_id] = dict(zip(self.chunk.cached, leaves, strict=True))
        for block in self.last_reads:
            self.store.drop(fwd_chunk_id, block)
        return output

    def forward_maybe_with_nosync(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward_maybe_with_nosync(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.is_last:
            self._arrived = args
            return output
        outputs = output if isinstance(output, tuple) else (output,)
        self._arrived, self._sent = args, tuple(self._sendable(tensor) for tensor in outputs)
        return self._sent

    def _sendable(self, tensor: Tensor) -> Tensor:
        """Contiguous; and a copy where the schedule detaches outputs in place: reads of this chunk saved the source."""
        return tensor.clone(memory_format=torch.contiguous_format) if self.splits_backward else tensor.contiguous()

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> Any:
        """Note the micro-batch, which the methods below are not told.

        Args:
            bwd_chunk_id: of the micro-batch.
            loss, full_backward, last_backward: those of torch.
        """
        self._microbatch = bwd_chunk_id
        return super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> Any:
        gradients = list(super()._retrieve_recv_grads(bwd_chunk_id))
        for block in self.chunk.keeps:
            if block not in self.chunk.arrives:
                place = self.chunk.sends.index(block)
                gradients[place] = _sum(gradients[place], self.store.take_gradient(bwd_chunk_id, block))
        return tuple(gradients)

    def backward_maybe_with_nosync(
        self, backward_type: Any, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """Exchange gradients with the store after a backward of inputs.

        Args:
            backward_type, bwd_kwargs, last_backward: those of torch.
        """
        # torch flattens positional arguments and keywords into one list, where leaves are found by identity.
        places = {id(value): place for place, value in enumerate(bwd_kwargs.get("input_values", ()))}
        gradients, groups = super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        if backward_type == "weight" or self.is_first:
            return gradients, groups
        microbatch, summed = self._microbatch, list(gradients)
        for block, leaf in self._leaves.pop(microbatch).items():
            if (gradient := summed[places[id(leaf)]]) is not None:
                self.store.add_gradient(microbatch, block, gradient)
        for block in self.chunk.keeps:
            if block in self.chunk.arrives:
                place = self.chunk.arrives.index(block)
                summed[place] = _sum(summed[place], self.store.take_gradient(microbatch, block))
        return tuple(None if value is None else value.contiguous() for value in summed), groups

    def clear_runtime_states(self) -> None:
        super().clear_runtime_states()
        self._leaves.clear()
        self._arrived, self._sent = (), ()
        self.store.clear()


def _sum(gradient: Tensor | None, kept: Tensor | None) -> Tensor | None:
    """Out of place: a received gradient lies in a buffer that torch uses again."""
    if gradient is None or kept is None:
        return kept if gradient is None else gradient
    return gradient + kept


@contextlib.contextmanager
def without_loss(schedule: Any) -> Iterator[None]:
    """Run a schedule forward without computing a loss, for which torch wants a target."""
    loss = schedule._loss_fn
    schedule._loss_fn = None
    try:
        yield
    finally:
        schedule._loss_fn = loss
