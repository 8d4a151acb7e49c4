"""Groups of reads: the cheapest cut is the cheapest, forced cuts are what they are called, and all reads are in one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnres_kernels.definition import cost
from attnres_passes.schedule.group_reads import MOST_READS, Group, Inference, group_reads, group_reads_on_cpu


def completed_by(writes: int, block_size: int) -> list[int]:
    """Completed blocks of a read behind every write."""
    return [1 + read // block_size for read in range(1, writes + 1)]


def cuts(completed: list[int]) -> Iterator[float]:
    """Costs of all cuts into groups, each with a phase 1 over what its reads share, or direct."""
    if not completed:
        yield 0.0
    for size in range(1, len(completed) + 1):
        head, tail = completed[:size], completed[size:]
        for rest in cuts(tail):
            yield cost.group(head[0], head) + rest
            yield cost.group(0, head) + rest


rising = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(
    lambda steps: [1 + sum(steps[:k]) for k in range(len(steps))]
)


@given(rising)
def test_auto_is_the_cheapest_of_all_cuts(completed: list[int]) -> None:
    found = group_reads(completed, "auto", most_in_place=100)
    assert sum(group.moved for group in found.groups) == pytest.approx(min(cuts(completed)))


@given(rising, st.sampled_from(["auto", "direct", "two_phase"]), st.integers(0, 3))
def test_every_read_is_in_one_group(completed: list[int], schedule: str, most: int) -> None:
    groups = group_reads(completed, schedule, most).groups
    assert [n for group in groups for n in group.completed] == completed
    assert [group.first for group in groups] == [sum(len(g.completed) for g in groups[:k]) for k in range(len(groups))]
    for group in groups:
        assert len(group.completed) <= MOST_READS or schedule == "two_phase"
        assert group.shared <= group.completed[0]
        if group.shared:
            assert max(group.completed) - group.shared <= most or len(set(group.completed)) == 1


def test_two_phase_is_one_group_per_block() -> None:
    groups = group_reads(completed_by(24, 3), "two_phase", most_in_place=12).groups
    assert [(group.shared, len(group.completed)) for group in groups] == [
        (1, 2),
        *((n, 3) for n in range(2, 9)),
        (9, 1),
    ]
    # More reads than a group holds under "auto": a block is one group all the same.
    (first, *_) = group_reads(completed_by(64, 32), "two_phase", most_in_place=12).groups
    assert len(first.completed) == 31


def test_direct_reads_share_nothing() -> None:
    groups = group_reads(completed_by(40, 3), "direct", most_in_place=12).groups
    assert {group.shared for group in groups} == {0}
    assert sum(group.moved for group in groups) == sum(n + 4 for n in completed_by(40, 3))


def test_full_attention_residuals_are_grouped() -> None:
    """With N sublayers in groups of S, a read costs about S + N and not N times two (Table 1 of the paper)."""
    completed = completed_by(63, 1)
    groups = group_reads(completed, "two_phase", most_in_place=12).groups
    assert all(group.shared for group in groups)
    assert 4 < len(groups) < 20
    assert sum(group.moved for group in groups) < 0.45 * sum(cost.direct(n) for n in completed)
    assert group_reads(completed, "auto", 12).groups[0].shared == 0, "with few sources, direct reads are cheaper"


def test_the_cut_of_gpt2() -> None:
    """24 sublayers in 8 blocks: direct at first, then groups of two and three blocks."""
    found = group_reads(completed_by(24, 3), "auto", most_in_place=12)
    assert found.groups == (
        Group(0, (1, 1, 2, 2, 2), 0),
        Group(5, (3, 3, 3, 4, 4, 4), 3),
        Group(11, (5, 5, 5, 6, 6, 6), 5),
        Group(17, (7, 7, 7, 8, 8, 8, 9), 7),
    )
    assert sum(group.moved for group in found.groups) == 168
    text = str(found)
    assert "5-10     3-4          two_phase   3         7.00     7.50         4.00" in text


def cuts_without_gradients(completed: list[int], first: int = 0) -> Iterator[tuple[Group, ...]]:
    """All cuts into groups, each with a phase 1, direct, or of reads that make their own logits."""
    if not completed:
        yield ()
    for size in range(1, len(completed) + 1):
        head = tuple(completed[:size])
        for rest in cuts_without_gradients(completed[size:], first + size):
            yield Group(first, head, head[0]), *rest
            yield Group(first, head, 0), *rest
            yield Group(first, head, 0, own_logits=True), *rest


@given(rising.filter(lambda completed: len(completed) <= 5), st.floats(0, 20), st.integers(1, 20))
def test_without_gradients_launches_count(completed: list[int], launch: float, most: int) -> None:
    """The cheapest of all cuts if a launch costs something, and logits made first a launch per block."""

    def cost_of(groups: tuple[Group, ...]) -> float:
        blocks = max((group.completed[-1] for group in groups if not group.own_logits), default=0)
        launches = blocks + sum(group.shared > 0 for group in groups)
        return sum(group.moved for group in groups) + blocks * cost.logits_first() + launches * launch

    found = group_reads(completed, "auto", 100, Inference(launch, most)).groups
    assert [n for group in found for n in group.completed] == completed
    allowed = [
        groups
        for groups in cuts_without_gradients(completed)
        if all(group.completed[-1] <= most for group in groups if group.own_logits)
    ]
    assert all(group.completed[-1] <= most for group in found if group.own_logits)
    assert cost_of(found) == pytest.approx(min(map(cost_of, allowed)))


def test_the_cut_of_gpt2_without_gradients() -> None:
    """As many launches as the plain model has, until what two phases save is more than theirs cost."""
    completed = completed_by(24, 3)
    decode = group_reads(completed, "auto", 12, Inference(cost.launch(1, 768, 2), most=31))
    assert {group.schedule for group in decode.groups} == {"own logits"}
    assert "a launch counts as 5.46e+03" in str(decode)
    prefill = group_reads(completed, "auto", 12, Inference(cost.launch(65536, 768, 2), most=31))
    assert {group.schedule for group in prefill.groups} == {"two_phase", "direct"}
    assert group_reads(completed, "direct", 12, Inference(1e9, 31)) == group_reads(completed, "direct", 12)


def test_what_is_taken_in_place_is_bounded() -> None:
    wide = group_reads(completed_by(24, 1), "auto", most_in_place=2)
    assert all(n - group.shared <= 2 for group in wide.groups for n in group.completed)


@given(rising, st.integers(1, 256), st.sampled_from([64, 768, 1 << 20]))
def test_on_a_cpu_the_cheaper_of_the_two_is_taken(completed: list[int], tokens: int, width: int) -> None:
    found = group_reads_on_cpu(completed, tokens, width, 12)
    direct, two_phase = (group_reads(completed, name, 12) for name in ("direct", "two_phase"))
    phases = sum(group.shared > 0 for group in two_phase.groups)
    in_phases = 1.78 * two_phase.moved + phases * 1_370_000 / (tokens * width)
    assert found.groups == (direct if direct.moved <= in_phases else two_phase).groups
    assert str(found).endswith(f"{tokens} tokens: direct costs {direct.moved:.4g}, two_phase {in_phases:.4g}")


def test_on_a_cpu_decode_steps_read_directly_and_long_prefills_in_phases() -> None:
    for completed in (completed_by(24, 3), completed_by(12, 3)):
        decode, prefill = (group_reads_on_cpu(completed, tokens, 768, 12) for tokens in (1, 512))
        assert {group.schedule for group in decode.groups} == {"direct"}
        assert prefill.groups == group_reads(completed, "two_phase", 12).groups
        assert "on a CPU: two_phase, as for all over 256 tokens" in str(prefill)


def test_on_a_cpu_many_blocks_are_worth_a_phase() -> None:
    completed = completed_by(400, 10)
    assert {group.schedule for group in group_reads_on_cpu(completed, 256, 4096, 64).groups} == {"two_phase"}
    assert {group.schedule for group in group_reads_on_cpu(completed, 1, 256, 64).groups} == {"direct"}


def test_the_costs_on_a_cpu_are_those_of_the_record() -> None:
    """What one more token, and one more phase, costs in its samples, within the spread of a busy machine."""
    path = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "schedules-cpu.json"
    cells = {
        cell["tokens"]: {name: 1e6 * median(samples) / 12 for name, samples in cell["samples"].items()}
        for cell in json.loads(path.read_text())["cells"]
        if (cell["writes"], cell["blocks"], cell["width"]) == (12, 4, 768)
    }
    completed = completed_by(12, 3)
    direct, two_phase = (group_reads(completed, name, 12) for name in ("direct", "two_phase"))
    per_token = {name: (cells[256][name] - cells[1][name]) / 255 for name in ("direct", "two_phase")}
    of_direct, of_phases = per_token["direct"] / direct.moved, per_token["two_phase"] / two_phase.moved
    phases = sum(group.shared > 0 for group in two_phase.groups)
    left = cells[1]["two_phase"] - cells[1]["direct"] - (per_token["two_phase"] - per_token["direct"])
    assert of_phases / of_direct == pytest.approx(cost.TWO_PHASE_ON_CPU, rel=0.05)
    assert left / phases / of_direct * 768 == pytest.approx(cost.PHASE_1_ON_CPU, rel=0.05)
