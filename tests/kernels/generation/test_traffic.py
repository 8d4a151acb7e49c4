"""The bytes that kernels touch: counted from their specs, equal to the cost model and to what their text does."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from attnres_kernels.definition import cost
from attnres_kernels.generation.logits import logits_text
from attnres_kernels.generation.own_logits_read import own_logits_read_text
from attnres_kernels.generation.own_logits_read_backward import own_logits_read_backward_text
from attnres_kernels.generation.phase_1 import phase_1_text
from attnres_kernels.generation.read import read_text
from attnres_kernels.generation.read_backward import read_backward_text
from attnres_kernels.generation.sources_backward import gradients_text, keys_text
from attnres_kernels.generation.specs import (
    MOST_READS,
    MOST_SOURCES,
    LogitsSpec,
    OwnLogitsReadBackwardSpec,
    OwnLogitsReadSpec,
    Phase1Spec,
    ReadBackwardSpec,
    ReadSpec,
    SourcesBackwardSpec,
)
from attnres_kernels.generation.traffic import Traffic, traffic_of
from attnres_kernels.launch.split_sources_backward import split_into_launches, tiles_held
from attnres_kernels.operators.definition import Shaped
from attnres_kernels.operators.sources_backward import SOURCES_BACKWARD

READ = ReadSpec(adds=True, norm="rms", has_weight=True, returns_value=False)


@pytest.mark.parametrize("completed", range(1, 10))
def test_a_direct_read_moves_what_the_cost_model_says(completed: int) -> None:
    spec = ReadSpec(completed, False, True, True, "rms", True, False, False)
    assert traffic_of(spec).total == cost.direct(completed) == completed + 4


@pytest.mark.parametrize(("completed", "reads"), product(range(1, 10), range(1, 9)))
def test_a_block_in_two_phases_moves_what_the_cost_model_says(completed: int, reads: int) -> None:
    phase_1 = traffic_of(Phase1Spec(completed, reads)).total
    phase_2 = traffic_of(READ).total
    assert phase_1 == completed + reads
    assert phase_2 == 5
    assert phase_1 + reads * phase_2 == pytest.approx(reads * cost.two_phase(completed, reads))
    assert phase_1 + reads * phase_2 == cost.group(completed, [completed] * reads)


@pytest.mark.parametrize(("shared", "reads"), product(range(1, 5), range(1, 5)))
def test_a_group_over_several_blocks_moves_what_the_cost_model_says(shared: int, reads: int) -> None:
    completed = [shared + s for s in range(reads)]
    own = [ReadSpec(n - shared, True, True, True, "rms", True, False, False) for n in completed]
    counted = traffic_of(Phase1Spec(shared, reads)).total + sum(traffic_of(spec).total for spec in own)
    assert counted == cost.group(shared, completed)


def test_logits_read_a_block_once_for_all_later_reads() -> None:
    assert traffic_of(LogitsSpec(splits_keys=True)) == Traffic(1, 0)
    # Completing the block in the same kernel saves that read: an add of its own moves three.
    assert traffic_of(LogitsSpec(splits_keys=True, adds=True)).total == 3


def tiles(text: str) -> Traffic:
    """Different tensors whose tiles a kernel's text loads and stores."""
    stride, column = r"(?:\w+|tl\.cast\(\w+, tl\.uint32\))", r"column(?:\[None, :\])?"
    loads = re.findall(rf"tl\.load\((\w+)(?: \+ zero)? \+ row(?:\[:, None\])? \* {stride} \+ {column}", text)
    stores = re.findall(rf"tl\.store\((\w+) \+ row(?:\[:, None\])? \* {stride} \+ {column}", text)
    return Traffic(len(set(loads)), len(set(stores)))


BOOLEANS = (False, True)
READS = [
    ReadSpec(n, inter, partial, adds, norm, False, False, value)
    for n, inter, partial, adds, norm, value in product((0, 2), BOOLEANS, BOOLEANS, BOOLEANS, (None, "layer"), BOOLEANS)
    if (n or inter or partial) and (partial or not adds) and (norm or value)
]
OWN_LOGITS_READS = [spec for spec in READS if not spec.has_inter]
CASES: list[tuple[Any, list[Callable[[Any], str]]]] = [
    *((LogitsSpec(splits, adds), [logits_text]) for splits in BOOLEANS for adds in BOOLEANS),
    *((Phase1Spec(3, 2, goes_on), [phase_1_text]) for goes_on in BOOLEANS),
    *((spec, [read_text]) for spec in READS),
    *(
        (
            ReadBackwardSpec(spec, value, normed, later and spec.has_partial, wide),
            [read_backward_text],
        )
        for spec in READS
        for value, normed, later, wide in ((True, False, False, False), (False, True, True, True))
    ),
    *((OwnLogitsReadSpec(spec, at_once), [own_logits_read_text]) for spec in OWN_LOGITS_READS for at_once in (1, 4)),
    *(
        (
            OwnLogitsReadBackwardSpec(spec, value, normed, later and spec.has_partial, at_once, at_once > 1),
            [own_logits_read_backward_text],
        )
        for spec in OWN_LOGITS_READS
        for value, normed, later, at_once in ((True, False, False, 4), (False, True, True, 1))
    ),
    (SourcesBackwardSpec(3, (0, 2), (1,), tiles=1), [gradients_text]),
    (SourcesBackwardSpec(6, (0, 2, 3), (0, 1), tiles=3), [gradients_text]),
    (SourcesBackwardSpec(3, tuple(range(6)), ()), [gradients_text, keys_text]),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_counts_are_those_of_the_text(case: int) -> None:
    spec, texts = CASES[case]
    total = Traffic(0, 0)
    for text in texts:
        total += tiles(text(spec))
    assert traffic_of(spec) == total, spec


# The backward of the sources in launches


def moves(width: int, sources: int, reads: int, carried: bool = True) -> int:
    later = tuple(range(sources)) if carried else ()
    found = split_into_launches(sources, tuple(range(reads)), later, width)
    return sum(traffic_of(launch.spec).total for launch in found)


@pytest.mark.parametrize(
    ("width", "reads", "expected"),
    [
        # Blocks, their gradients before and after, and the gradients of the reads once, while registers hold the sums
        # for the keys: GPT-2 and Llama 1B.
        (768, 3, [3 * n + 3 for n in range(1, 9)]),
        (2048, 4, [3 * n + 4 for n in range(1, 9)]),
        # Qwen3 1.7B, and wide rows: another kernel reads the blocks for the keys.
        (2048, 7, [4 * n + 7 for n in range(1, 9)]),
        (4096, 2, [3 * n + 2 for n in range(1, 9)]),
        (7168, 1, [3 * n + 1 for n in range(1, 9)]),
        (7168, 7, [4 * n + 7 for n in range(1, 9)]),
    ],
)
def test_the_backward_of_the_sources_moves_every_row_once(width: int, reads: int, expected: list[int]) -> None:
    assert [moves(width, n, reads) for n in range(1, 9)] == expected


@pytest.mark.parametrize("width", [64, 2048, 4096, 7168, 16384])
@pytest.mark.parametrize(("sources", "reads"), [(1, 1), (4, 8), (8, 7), (9, 8), (13, 3), (14, 17), (33, 9)])
def test_a_cut_is_of_every_pair_once_and_no_worse_than_the_fewest_launches(
    width: int, sources: int, reads: int
) -> None:
    found = split_into_launches(sources, tuple(range(5, 5 + reads)), (0,), width)
    pairs = [
        (launch.first_source + i, read)
        for launch in found
        for i in range(launch.spec.sources)
        for read in launch.spec.reads
    ]
    assert sorted(pairs) == list(product(range(sources), range(5, 5 + reads)))
    for launch in found:
        assert launch.spec.sources <= MOST_SOURCES
        assert len(launch.spec.reads) <= MOST_READS
        assert launch.spec.tiles == tiles_held(len(launch.spec.reads), width)
        goes_on = {i for i in range(launch.spec.sources) if launch.first_read > 0 or launch.first_source + i == 0}
        assert set(launch.spec.carried) == goes_on
    passes = -(-reads // MOST_READS)
    uncut = sources * (3 * passes - 1) + -(-sources // MOST_SOURCES) * reads + passes * sources + 1
    assert sum(traffic_of(launch.spec).total for launch in found) <= uncut
    row = Shaped((1, width))
    call = SOURCES_BACKWARD.named({"read_grads": [row] * reads, "carried": (), "sources": [row] * sources})
    assert SOURCES_BACKWARD.launches(call) == sum(1 + (not x.spec.sums_keys) for x in found)
