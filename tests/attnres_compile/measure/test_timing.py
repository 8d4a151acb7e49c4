"""Paired timing: order of the calls, medians and spread, the interval of the ratio, and what it refuses."""

from __future__ import annotations

import gc
import itertools
import json
import random
import statistics
import time

import pytest
import torch

from attnres_compile.measure.timing import compare
from attnres_compile.report.comparison import (
    CONFIDENCE,
    Comparison,
    MeasureError,
    Ratio,
    Samples,
    median_interval_rank,
    paired_ratio,
    quantile,
)


def test_the_two_are_called_in_turn_and_equally_often():
    calls: list[str] = []

    def recorder(name):
        def call():
            calls.append(name)
            time.sleep(0.001)

        return call

    compare(recorder("a"), recorder("b"), rounds=4, warmup=3, sample_seconds=0)
    # Three warm-up calls each, one each to find the calls per sample, then the rounds, in alternating order.
    assert "".join(calls) == "aaabbb" + "ab" + "abbaabba"


def test_samples_are_kept_in_order_with_their_names_and_device():
    timed = compare(lambda: None, lambda: None, rounds=5, sample_seconds=0.001, names=("x", "y"))
    assert (timed.baseline.name, timed.candidate.name) == ("x", "y")
    assert len(timed.baseline.seconds) == len(timed.candidate.seconds) == 5
    assert timed.device.startswith("CPU")
    assert timed.threads == torch.get_num_threads()
    assert timed.calls > 1, "a call of nothing must be repeated to fill a sample"
    assert all(seconds > 0 for seconds in timed.baseline.seconds)


def test_a_difference_of_a_half_is_found_and_resolved():
    timed = compare(lambda: time.sleep(0.004), lambda: time.sleep(0.006), rounds=10, sample_seconds=0)
    assert timed.ratio.resolved
    assert 1.2 < timed.ratio.value < 1.8
    assert "≈" not in str(timed.ratio)
    assert timed.candidate.median > timed.baseline.median > 0.004


def test_equal_work_is_not_called_different():
    generator = random.Random(0)
    baseline = [generator.uniform(0.9, 1.1) for _ in range(40)]
    candidate = [generator.uniform(0.9, 1.1) for _ in range(40)]
    ratio = paired_ratio(baseline, candidate)
    assert not ratio.resolved
    assert str(ratio).startswith("≈ ")
    assert ratio.low < 1 < ratio.high


def test_drift_that_meets_both_arms_cancels_in_the_paired_ratio():
    drift = [1.0 + index / 10 for index in range(20)]
    ratio = paired_ratio(drift, [1.05 * seconds for seconds in drift])
    assert ratio.resolved
    assert ratio.value == pytest.approx(1.05)
    assert ratio.high - ratio.low < 1e-9


@pytest.mark.parametrize(("count", "rank"), [(6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (40, 13), (100, 39)])
def test_interval_rank_agrees_with_the_published_order_statistics(count, rank):
    """Ranks of the 95 % sign-test interval for a median, as in tables of nonparametric statistics."""
    found, confidence = median_interval_rank(count)
    assert found == rank
    assert confidence >= CONFIDENCE


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_too_few_rounds_never_resolve_and_say_what_they_give(count):
    rank, confidence = median_interval_rank(count)
    assert rank == 0
    assert confidence == pytest.approx(max(0.0, 1 - 2 * 0.5**count))
    ratio = paired_ratio([1.0] * count, [2.0] * count)
    assert not ratio.resolved
    assert "≈" in str(ratio)


@pytest.mark.parametrize("count", [6, 11, 20])
def test_interval_covers_the_true_median_as_often_as_it_says(count):
    generator = random.Random(1)
    hits = 0
    for _ in range(2000):
        ratio = paired_ratio([1.0] * count, [generator.lognormvariate(0, 0.3) for _ in range(count)])
        hits += ratio.low <= 1.0 <= ratio.high
    assert hits / 2000 == pytest.approx(median_interval_rank(count)[1], abs=0.02)


def test_quantiles_agree_with_statistics():
    values = [random.Random(2).random() for _ in range(31)]
    expected = statistics.quantiles(values, n=10, method="inclusive")
    assert quantile(values, 0.2) == pytest.approx(expected[1])
    assert quantile(values, 0.8) == pytest.approx(expected[7])
    assert Samples("one", (3.0,)).p20 == 3.0
    assert Samples("two", (1.0, 2.0)).median == 1.5


def test_record_survives_json():
    timed = compare(lambda: None, lambda: None, rounds=6, sample_seconds=0.0005)
    again = Comparison.from_dict(json.loads(json.dumps(timed.to_dict())))
    assert again == timed


def test_garbage_collection_is_paused_while_sampling_and_resumed():
    states: list[bool] = []
    compare(lambda: states.append(gc.isenabled()), lambda: None, rounds=2, warmup=1, sample_seconds=0)
    assert states[0] is True, "the warm-up runs as usual"
    assert states[-1] is False
    assert gc.isenabled()


def test_garbage_collection_is_resumed_after_a_failure():
    calls = itertools.count()

    def fails_later():
        if next(calls) > 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compare(fails_later, lambda: None, rounds=10, sample_seconds=0)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"rounds": 0}, "pass at least 1"), ({"names": ("same", "same")}, "pass two different names")],
)
def test_refuses_what_it_cannot_measure(keywords, message):
    with pytest.raises(MeasureError, match=message):
        compare(lambda: None, lambda: None, **keywords)


def test_refuses_samples_that_cannot_be_paired():
    with pytest.raises(MeasureError, match="1 and 2 samples cannot be paired"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(MeasureError, match="take at least 1 round"):
        Samples("empty", ())


def test_a_ratio_is_resolved_only_when_its_interval_leaves_one_out():
    assert Ratio(1.1, 1.05, 1.2, 0.96).resolved
    assert Ratio(0.9, 0.8, 0.99, 0.96).resolved
    assert not Ratio(1.1, 1.0, 1.2, 0.96).resolved
    assert not Ratio(1.1, 1.05, 1.2, 0.90).resolved
    assert str(Ratio(1.1, 1.05, 1.2, 0.96)) == "1.100 [1.050, 1.200]"
