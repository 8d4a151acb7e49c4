"""What all ranks of a pipeline must agree on, found out before anything is sent that could hang or be cut short."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from attnres_compile.pipelines.errors import PipelineMismatchError, PipelineSupportError


def check_distributed(group: dist.ProcessGroup | None, num_stages: int | None) -> int:
    """The number of ranks of the pipeline.

    Args:
        group: the ranks; all of them if None.
        num_stages: how many the user expects, if told.

    Raises:
        PipelineSupportError: there is no process group, or it has another size.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise PipelineSupportError(
            "no process group: start the script with torchrun, and call torch.distributed.init_process_group() first."
        )
    size = dist.get_world_size(group)
    if num_stages is not None and num_stages != size:
        raise PipelineSupportError(
            f"num_stages={num_stages}, and the process group has {size} rank{'' if size == 1 else 's'}; start one "
            "process per stage, or give group= the ranks of this pipeline."
        )
    return size


class Agreement:
    """The ranks of one pipeline."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def require_equal(self, digest: str, error: Exception | None) -> None:
        """Exchange hashes or errors in full.

        Args:
            digest: that must be equal on all ranks.
            error: of this rank, if it failed; it is raised again here.

        Raises:
            PipelineMismatchError: another rank failed, or has another digest.
        """
        found: list[Any] = [None] * self.size
        words = f"{type(error).__name__}: {error}" if error is not None else ""
        dist.all_gather_object(found, (digest, words), group=self.group)
        if error is not None:
            raise error
        for rank, (_, words) in enumerate(found):
            if words:
                raise PipelineMismatchError(f"rank {rank} of the pipeline failed, so all stop; {words}")
        if len({digest for digest, _ in found}) > 1:
            listed = ", ".join(f"rank {rank}: {digest}" for rank, (digest, _) in enumerate(found))
            raise PipelineMismatchError(
                f"the ranks do not run the same pipeline ({listed}); give all of them the same model, options and "
                "input shapes, and the same versions of the code."
            )

    def require_equal_briefly(self, digest: str, error: Exception | None) -> None:
        """Exchange two numbers, and the words only where those differ.

        Args:
            digest, error: those of ``require_equal``, which raises what is to be raised.
        """
        number = int(hashlib.sha256(digest.encode()).hexdigest()[:12], 16)
        mine = torch.tensor([number, int(error is not None)], dtype=torch.int64, device=self.device)
        all_ = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_, mine, group=self.group)
        numbers = torch.stack(all_).cpu()
        if bool((numbers[:, 1] != 0).any()) or bool((numbers[:, 0] != numbers[0, 0]).any()):
            self.require_equal(digest, error)


@contextlib.contextmanager
def naming_lost_peers(rank: int) -> Iterator[None]:
    """Say of an error that reaches this rank through a connection that it began elsewhere."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")):
            raise PipelineMismatchError(
                f"rank {rank} waited for another rank that has stopped or hangs; look at the output of the other ranks "
                f"for the first error. torch says: {text.splitlines()[0]}"
            ) from error
        raise
