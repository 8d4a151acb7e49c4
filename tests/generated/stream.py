"""A residual stream as a generated model uses it: plain, or as the paper's equations 1 to 6 have it.

Nothing here knows a graph, an analysis or a plan: the reads and writes are those that the walk over the description
makes, in the order in which it makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.generated.parts import ADDITIONS

Step = Callable[[Tensor], Tensor]


class Stream(Protocol):
    """What a walk needs of a stream."""

    def read(self) -> Tensor:
        """The input of what comes next."""

    def give(self, returned: list[Tensor]) -> None:
        """Let the present state leave the model, at the end of ``returned``."""

    def write(self, branch: Tensor, spelling: str) -> None:
        """Add a sublayer's output, in one of the spellings of ``ADDITIONS``."""

    def carry(self, kind: str, step: Step) -> None:
        """Go on through ``step``, which is of a kind of ``CARRIES``."""

    def finish(self) -> None:
        """Nothing is read or written any more."""


MakeStream = Callable[[Tensor], Stream]
"""From the root to a stream; called for the streams of a model in the order of their roots."""


class PlainStream:
    """The running sum."""

    def __init__(self, root: Tensor) -> None:
        self.state = root

    def read(self) -> Tensor:
        return self.state

    def give(self, returned: list[Tensor]) -> None:
        returned.append(self.state)

    def write(self, branch: Tensor, spelling: str) -> None:
        self.state = ADDITIONS[spelling](self.state, branch)

    def carry(self, kind: str, step: Step) -> None:
        self.state = step(self.state)

    def finish(self) -> None:
        pass


class DepthStream:
    """Block Attention Residuals. parameters: query and key-norm weight of each read of two sources or more.

    A state that leaves the model is read by its return, behind all other readers of that state: so its read is made
    when the state ends, of the sources as they were.
    """

    def __init__(self, root: Tensor, block_size: int, parameters: Sequence[Tensor], eps: float, scale: str) -> None:
        self.blocks, self.partial = [root], None
        self.written, self.block_size, self.eps, self.scale = 0, block_size, eps, scale
        self.parameters: Iterator[Tensor] = iter(parameters)
        self.leaving: list[tuple[list[Tensor], list[Tensor], int]] = []

    @property
    def sources(self) -> list[Tensor]:
        return [*self.blocks, *([] if self.partial is None else [self.partial])]

    def read(self) -> Tensor:
        return self._attend(self.sources)

    def give(self, returned: list[Tensor]) -> None:
        self.leaving.append((self.sources, returned, len(returned)))
        returned.append(self.blocks[0])  # its place is kept

    def write(self, branch: Tensor, spelling: str) -> None:
        self._end_state()
        branch = branch.expand(self.blocks[0].shape)
        self.partial = branch if self.partial is None else self.partial + branch
        self.written += 1
        if self.written % self.block_size == 0:
            self.blocks.append(self.partial)
            self.partial = None

    def carry(self, kind: str, step: Step) -> None:
        if kind == "dropout":
            mask = step(torch.ones_like(self.blocks[0]))
            apply = lambda source: source * mask  # noqa: E731
        else:
            apply = lambda source: step(source.clone())  # noqa: E731
        self.blocks = [apply(block) for block in self.blocks]
        self.partial = None if self.partial is None else apply(self.partial)

    def finish(self) -> None:
        self._end_state()
        assert next(self.parameters, None) is None, "every parameter is read once"

    def _end_state(self) -> None:
        for sources, returned, place in self.leaving:
            returned[place] = self._attend(sources)
        self.leaving.clear()

    def _attend(self, sources: list[Tensor]) -> Tensor:
        if len(sources) == 1:
            return sources[0]
        query, weight = next(self.parameters), next(self.parameters)
        values = torch.stack(sources)
        wide = values if values.dtype == torch.float64 else values.float()
        keys = wide / (wide.square().mean(-1, keepdim=True) + self.eps).sqrt() * weight.to(wide.dtype)
        attention = F.softmax((keys * query.to(wide.dtype)).sum(-1), 0)
        total = (attention.unsqueeze(-1) * wide).sum(0).to(values.dtype)
        return total * len(sources) if self.scale == "sum" else total
