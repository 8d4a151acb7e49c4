"""What the processes run: one Case after the other, in one spawn per number of ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One pipeline, trained and compared with a single process.

    sabotage: a fault to put in, which the comparison must see ('' for none); raises: part of the message that every
    rank must raise ('' for none); fault: what is done wrong to make it; frozen: the embedding is not trained.
    """

    virtual: int = 2
    schedule: str = "Interleaved1F1B"
    transfer: str = "cached"
    model: str = "toy"
    sublayers: int = 8
    block_size: int = 3
    microbatches: int = 4
    inner: str = "eager"
    zero_queries: bool = False
    steps: int = 1
    evaluates: bool = False
    from_meta: bool = False
    frozen: bool = False
    cut_points: tuple[str, ...] | None = None
    sabotage: str = ""
    fault: str = ""
    raises: str = ""

    def __str__(self) -> str:
        parts = [f"{self.model}-V{self.virtual}-{self.schedule}-{self.transfer}-blocks{self.block_size}"]
        for name in ("inner", "sabotage", "fault"):
            if getattr(self, name) not in ("", "eager"):
                parts.append(getattr(self, name))
        for name in ("zero_queries", "evaluates", "from_meta", "frozen"):
            if getattr(self, name):
                parts.append(name)
        return "-".join(parts)


SABOTAGES = ("drop", "double", "drop_one", "wrong_microbatch", "stale")
"""Negative controls: each must make the comparison fail."""

CRASH = Case(fault="crash", raises="waited for another rank that has stopped or hangs")
HANG = Case(fault="hang", raises="waited for another rank that has stopped or hangs")
REPLICAS = Case(fault="replicas", schedule="Interleaved1F1B", steps=2)
"""Two replicas of a pipeline of two ranks, their gradients averaged by DistributedDataParallel."""

ALONE = {"crash": CRASH, "hang": HANG, "replicas": REPLICAS}
"""Cases that need processes of their own."""

CASES: dict[int, tuple[Case, ...]] = {
    2: (
        Case(1, "1F1B"),
        Case(1, "GPipe", "naive"),
        Case(2, steps=5, evaluates=True),
        Case(2, transfer="naive", block_size=2),
        Case(2, block_size=2, zero_queries=True),
        Case(2, cut_points=("layers.1", "layers.2", "layers.7"), block_size=1),
        Case(4, block_size=1),
        Case(4, transfer="naive", block_size=1),
        Case(4, "LoopedBFS", block_size=2),
        Case(2, "InterleavedZeroBubble"),
        Case(2, "ZBVZeroBubble", steps=2),
        Case(2, "DualPipeV", block_size=2),
        Case(1, "1F1B", "naive", model="gpt2", sublayers=4),
        Case(2, model="gpt2", sublayers=4),
        Case(2, model="llama", sublayers=4, from_meta=True),
        Case(4, model="llama", block_size=2),
        Case(2, from_meta=True),
        Case(2, inner="inductor", sublayers=4, block_size=2, steps=2),
        Case(2, inner="aot_eager", sublayers=5, block_size=2, steps=2, evaluates=True, frozen=True),
        *(Case(2, block_size=2, sabotage=sabotage, steps=2) for sabotage in SABOTAGES),
        Case(fault="uneven batch", raises="drop or pad the last batch"),
        Case(fault="uneven example", raises="cannot be split into 4 equal micro-batches"),
        Case(fault="different plans", raises="the ranks do not run the same pipeline"),
        Case(fault="contradiction", raises="contradicts the plan that the model was prepared with (num_blocks=None)"),
        Case(fault="bad forward", raises="no such forward"),
        Case(fault="declined", raises="unnormed_read"),
        Case(fault="tied", raises="is a parameter that chunks 0, 3 use"),
        Case(fault="no target", raises="target is missing on the rank with the last chunk"),
        Case(sublayers=3, fault="few sublayers", raises="4 chunks for 3 sublayers that can be cut apart"),
        Case(fault="unset", from_meta=True, raises="have no value yet"),
        Case(2, "ZBVZeroBubble", fault="evaluates", raises="cannot run without a backward"),
        Case(2, "ZBVZeroBubble", inner="inductor", raises="which compiled stages cannot"),
        Case(2, "Interleaved", raises="did you mean 'Interleaved1F1B'?"),
    ),
    4: (
        Case(1, "1F1B"),
        Case(2),
        Case(2, transfer="naive"),
        Case(2, block_size=1),
        Case(2, "InterleavedZeroBubble", block_size=2),
        Case(2, "DualPipeV", microbatches=8),
        Case(1, "1F1B", model="llama", sublayers=4, block_size=2),
        Case(2, model="gpt2", zero_queries=True),
    ),
}
