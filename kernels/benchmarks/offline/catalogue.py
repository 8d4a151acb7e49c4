"""Every kernel that a block of a stream needs, with its tile: what is compiled offline, and what can be listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch

from attnres_kernels.generation.logits import logits_text
from attnres_kernels.generation.own_logits_read import own_logits_read_text
from attnres_kernels.generation.own_logits_read_backward import own_logits_read_backward_text
from attnres_kernels.generation.phase_1 import phase_1_text
from attnres_kernels.generation.read import read_text
from attnres_kernels.generation.read_backward import read_backward_text
from attnres_kernels.generation.sources_backward import gradients_text, keys_text
from attnres_kernels.generation.specs import LogitsSpec, NormKind, Phase1Spec, ReadBackwardSpec, ReadSpec
from attnres_kernels.launch import candidates, own_logits_tiling, tiling
from attnres_kernels.launch.candidates import Choices
from attnres_kernels.launch.split_sources_backward import split_into_launches


@dataclass(frozen=True)
class Entry:
    """One kernel. What tells kernels apart is made of its ``repr``: no field may be renamed without a new record."""

    kind: str
    text: str
    tile: tiling.Tiling
    constants: dict[str, float]
    """Compile-time arguments but the tile and what ``constants_on`` adds."""
    choices: Callable[[int], Choices] = field(repr=False)
    """Of its launch for bf16 sources, by the bytes of shared memory of a multiprocessor; compiled is the first."""
    copied: int = 0
    """Rows that its pipeline over rows copies at a time."""

    def constants_on(self, shared_memory: int) -> dict[str, float]:
        """All constants but the tile, for bf16 sources. shared_memory: bytes of a multiprocessor."""
        if not self.copied:
            return self.constants
        return {**self.constants, "STAGES": tiling.stages(self.copied, self.tile, 2, shared_memory)}


def kernels_of_block(sources: int, reads: int, width: int, later_reads: int) -> Iterator[Entry]:
    """The kernels for one block.

    Reads with everything fused that can be: the add before, and a norm with weight and bias behind; direct ones over
    all sources in place, phase 2 over all of them, and phase 2 over the first and the others in place.

    Args:
        sources: completed blocks.
        reads: of the block.
        width: of the stream.
        later_reads: all that see the block, for which it makes logits.
    """
    eps = {"eps": 1e-6}
    along, whole = tiling.along_width(width), tiling.whole_rows(width)
    block_r = {"BLOCK_R": tiling.reads_of_logits(later_reads)}
    for adds in (False, True):
        text = logits_text(LogitsSpec(splits_keys=True, adds=adds))
        name = "logits, add before" if adds else "logits"
        tile = tiling.matrix_product(later_reads)
        yield Entry(name, text, tile, {**eps, **block_r}, _anywhere(candidates.logits(later_reads)))
    spec = Phase1Spec(sources, reads)
    yield Entry("phase 1", phase_1_text(spec), along, {}, _anywhere(candidates.phase_1(spec, width)))
    steps = tiling.steps(width)
    for launch in split_into_launches(sources, tuple(range(reads)), tuple(range(sources)), width):
        constants = {**eps, "LANES": tiling.lanes(steps.columns)}
        kind = "gradients and keys" if launch.spec.sums_keys else "gradients"
        choices = _anywhere(candidates.gradients(launch.spec, width))
        yield Entry(f"sources backward, {kind}", gradients_text(launch.spec), steps, constants, choices)
        if not launch.spec.sums_keys:
            choices = _anywhere(candidates.keys(width))
            yield Entry("sources backward, keys", keys_text(launch.spec), along, {}, choices)
    most = tiling.most_in_place(width)
    in_place = {"direct read": min(sources, most), "phase 2": 0, "phase 2 with blocks": min(sources - 1, most - 1)}
    norms: tuple[NormKind, ...] = ("rms", "layer")
    for (kind, blocks), norm in product(in_place.items(), norms):
        if kind == "phase 2 with blocks" and blocks == 0:
            continue
        read = ReadSpec(blocks, kind != "direct read", True, True, norm, True, norm == "layer", False)
        name = f"{kind}, {norm} norm"
        constants = {"factor": 1.0, "eps": 1e-6, "norm_eps": 1e-5}
        yield Entry(name, read_text(read), whole, constants, _anywhere(candidates.read(width)))
        back = ReadBackwardSpec(read, False, True, True, tiling.is_wide(width))
        choices = partial(candidates.read_backward, back, width, 2)
        yield Entry(f"{name}, backward", read_backward_text(back), whole, {"factor": 1.0}, choices, back.copied)
    yield from _reads_with_own_logits(sources, width)


def _reads_with_own_logits(sources: int, width: int) -> Iterator[Entry]:
    """Reads that make their own logits: alone, as is a read on its own, and with everything fused.

    A forward without a backward, in inference, takes more sources than one with a backward.
    """
    forward, backward = own_logits_tiling.forward_tile(width), own_logits_tiling.backward_tile(width)
    sums, sums_back = (own_logits_tiling.lanes(tile, torch.bfloat16) for tile in (forward, backward))
    norms: tuple[NormKind | None, ...] = (None, "rms", "layer")
    for norm in norms:
        has_norm = norm is not None
        beside = False, True, has_norm, norm, has_norm, norm == "layer", not has_norm
        name = "read with own logits" + (f", {norm} norm" if has_norm else "")
        whole = ReadSpec(min(sources, own_logits_tiling.MOST_SOURCES - 1), *beside)
        text, constants = (
            own_logits_read_text(own_logits_tiling.forward_spec(whole, width)),
            {"eps": 1e-6, "norm_eps": 1e-5},
        )
        choices = _anywhere(candidates.own_logits_read(width, torch.bfloat16))
        yield Entry(name, text, forward, {"factor": 1.0, **constants, **sums}, choices)
        read = ReadSpec(min(sources, own_logits_tiling.most_sources(width, norm) - 1), *beside)
        text = own_logits_read_backward_text(
            own_logits_tiling.backward_spec(read, width, not has_norm, has_norm, has_norm)
        )
        choices = _anywhere(candidates.own_logits_read_backward(width, torch.bfloat16))
        yield Entry(f"{name}, backward", text, backward, {"factor": 1.0, **sums_back}, choices)


def _anywhere(choices: Choices) -> Callable[[int], Choices]:
    """The same choices for any shared memory; what a process is sent has no lambdas."""
    return partial(_first, choices)


def _first(choices: Choices, shared_memory: int) -> Choices:
    return choices
