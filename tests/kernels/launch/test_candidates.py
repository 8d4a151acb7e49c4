"""Every choice of a launch computes the same, in Triton's interpreter, and is worth its time, by its machine code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnres_kernels.definition.read_parts import Neighbours
from attnres_kernels.launch import launch_sources_backward, tiling, tuning
from attnres_kernels.launch.launch_phase_1 import phase_1, source_logits
from attnres_kernels.launch.split_sources_backward import Launch, split_into_launches
from attnres_kernels.launch.tuning import Choice
from kernels.benchmarks.offline.catalogue import kernels_of_block
from kernels.benchmarks.offline.occupancy import SHARED_MEMORY
from tests.kernels.benchmarks.test_offline import in_a_process
from tests.kernels.generation.sweep import EPS, assert_close
from tests.kernels.generation.test_generated import Draw, Group, _Comparison, equations
from tests.kernels.generation.test_own_logits_read import Case, compare

KINDS = ("logits", "phase_1", "read_backward", "read", "gradients", "keys", "own_read_backward", "own_read")
MOST = 4
"""Choices of one kernel."""

Take = Callable[[int], set[str]]


def kind_of(name: str) -> str:
    return next(kind for kind in KINDS if name.startswith(kind))


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Take:
    """Has each launch that is tuned take the choice of this number, through Triton's autotuner; the kinds of those that
    did, once they have.
    """

    def take(number: int) -> set[str]:
        kinds: set[str] = set()

        def tuned(kernel: Any, choices: tuple[Choice, ...]) -> Any:
            assert 1 < len(choices) <= MOST
            kinds.add(kind_of(kernel.__name__))
            return honest(kernel, (choices[number % len(choices)],))

        monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
        monkeypatch.setattr(tuning, "tuned", tuned)
        monkeypatch.setattr(tiling, "shared_memory", lambda device: SHARED_MEMORY["sm_90"])
        return kinds

    honest = tuning.tuned
    return take


interpreted = pytest.mark.usefixtures("poisoned_outputs")
every_choice = pytest.mark.parametrize("number", range(MOST))


def keys_apart(*arguments: Any) -> list[Launch]:
    """The launches of ``split_into_launches``, none of which sums the gradients of the keys."""
    return [replace(launch, spec=replace(launch.spec, tiles=0)) for launch in split_into_launches(*arguments)]


@pytest.mark.interpreter
@interpreted
@every_choice
@pytest.mark.parametrize(
    ("rows", "width", "count", "reads", "dtype", "two_phase", "sums_keys"),
    [
        (4, 1100, 1, 2, torch.float32, True, False),  # as in wide rows, which would take long
        (5, 300, 14, 2, torch.float32, True, True),  # phase 1 goes on, and the sources' backward has two parts
        (4, 300, 2, 2, torch.bfloat16, False, False),
    ],
)
def test_every_choice_computes_a_group_of_reads_and_every_gradient(
    number: int,
    rows: int,
    width: int,
    count: int,
    reads: int,
    dtype: torch.dtype,
    two_phase: bool,
    sums_keys: bool,
    take: Take,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = take(number)
    if not sums_keys:
        monkeypatch.setattr(launch_sources_backward, "split_into_launches", keys_apart)
    draw = Draw(2, dtype)
    behind = Neighbours(None, "layer", 1e-5, draw(width), draw(width))
    shared, partials = [draw(rows, width) for _ in range(count)], [draw(rows, width) for _ in range(reads)]
    keys = draw(reads, width, dtype=torch.float32, spread=width**-0.5)
    own = [[draw(rows, width) for _ in range(s if two_phase else 0)] for s in range(reads)]
    group = Group(shared, own, [*partials], keys, behind, 1.0)
    _Comparison(group, dtype, draw, 2, two_phase).run()
    expected = {"logits", "read", "read_backward"} | ({"phase_1"} if two_phase else set())
    assert kinds == expected | (set() if sums_keys else {"gradients", "keys"})


@pytest.mark.interpreter
@interpreted
@every_choice
@pytest.mark.parametrize("width", [300, 1100])
def test_every_choice_computes_a_read_with_own_logits(number: int, width: int, take: Take) -> None:
    kinds = take(number)
    compare(Case(5, width, 3, True, True, ("layer", 1, 1), True, 1.0, torch.float32), number)
    compare(Case(3, width, 6, True, False, None, True, 7.0, torch.bfloat16), number)
    assert kinds == {"own_read"}


@pytest.mark.interpreter
def test_a_launch_that_goes_on_from_memory_is_not_tuned(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    """To time phase 1 over later blocks would add these to its outputs each time."""
    take(1)
    names: list[str] = []
    chosen = tuning.tuned
    monkeypatch.setattr(tuning, "tuned", lambda kernel, c: names.append(kernel.__name__) or chosen(kernel, c))
    draw = Draw(0, torch.float32)
    sources, keys = [draw(3, 33) for _ in range(14)], draw(2, 33)
    outputs, _ = phase_1(sources, [source_logits(x, keys, EPS) for x in sources])
    expected, _ = equations([x.double() for x in sources], keys.double())
    assert names[-1] == "phase_1_n12_s2"
    assert_close(outputs[1], expected[1], 1e-5, "output")


# Compiled for a GPU that is not there


SCRIPT = """
import json, sys
from kernels.benchmarks.offline.catalogue import kernels_of_block
from kernels.benchmarks.offline.occupancy import SHARED_MEMORY
from kernels.benchmarks.offline.compilation import compile_offline

found = []
for width, sources, reads in json.loads(sys.argv[1]):
    for entry in kernels_of_block(sources, reads, width, later_reads=sources * reads):
        for choice in entry.choices(SHARED_MEMORY["sm_90"])[1:]:
            numbers = dict(choice.constants)
            tile = (numbers.pop("BLOCK_T", 1), numbers["BLOCK_D"], choice.warps)
            compiled = compile_offline(entry.text, {**entry.constants, **numbers}, tile, "sm_90")
            facts = compiled.facts
            found.append([entry.kind, str(choice), facts.spilled_bytes, facts.narrowest_load, compiled.shared_bytes])
print(json.dumps(found))
"""


@pytest.mark.parametrize("shape", [(768, 2, 2), (2048, 4, 3), (7168, 9, 8)], ids=lambda x: "d{}-n{}-s{}".format(*x))
def test_no_choice_spills_or_loads_less_than_128_bits_or_has_too_little_shared_memory(
    shape: tuple[int, int, int],
) -> None:
    found = json.loads(in_a_process(SCRIPT, json.dumps([shape])))
    assert len(found) > 20
    assert not [x for x in found if x[2] > 0 or x[3] != 128 or x[4] > SHARED_MEMORY["sm_90"] - 1024]


def test_the_first_choice_is_the_static_one() -> None:
    memory = SHARED_MEMORY["sm_90"]
    for width, sources in ((33, 2), (768, 9), (2048, 4), (7168, 9), (16384, 3)):
        for entry in kernels_of_block(sources, 3, width, later_reads=70):
            first, *others = entry.choices(memory)
            rows = {"BLOCK_T": entry.tile.rows} if entry.kind.startswith("logits") else {}
            tile = rows | {"BLOCK_D": entry.tile.columns, "num_warps": entry.tile.warps}
            constants = {k: v for k, v in entry.constants_on(memory).items() if k not in ("eps", "norm_eps", "factor")}
            assert first.numbers() == tile | constants, entry.kind
            assert first not in others
            assert len(set(others)) == len(others)


def test_rows_that_fill_the_registers_leave_nothing_to_choose() -> None:
    for entry in kernels_of_block(3, 2, 16384, later_reads=6):
        is_cut = entry.kind.startswith(("logits", "phase 1")) or entry.kind.endswith((", keys", ", gradients"))
        assert (len(entry.choices(SHARED_MEMORY["sm_90"])) > 1) == is_cut, entry.kind


def test_sums_over_tokens_are_cut_the_same_way_whatever_is_chosen() -> None:
    """The number of programs is not among what is chosen; a row of a program is one of a tile."""
    for entry in kernels_of_block(4, 3, 2048, later_reads=12):
        assert {name for choice in entry.choices(1 << 17) for name, _ in choice.constants} <= {
            *("BLOCK_T", "BLOCK_D", "BLOCK_R", "LANES", "FOLD", "STAGES")
        }
