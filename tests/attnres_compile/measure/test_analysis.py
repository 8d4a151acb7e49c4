"""The benchmark of the passes: its toy, its steps, and the exponent of their growth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnres_compile.measure.analysis import STEPS, PreNormToy, growth_exponent, step_times
from attnres_compile.report.comparison import MeasureError


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_exponent_of_a_known_growth(exponent):
    assert growth_exponent({n: 0.3 * n**exponent for n in (25, 50, 100, 200)}) == pytest.approx(exponent)


def test_every_stage_of_every_call_is_timed():
    x = torch.zeros(1, 8, 16)
    model = PreNormToy(2)
    first, again = step_times(model, (x,)), step_times(model, (x,))
    deeper = step_times(PreNormToy(4), (x,))
    for times in (first, again, deeper):
        assert tuple(times.seconds) == STEPS
        assert all(seconds > 0 for seconds in times.seconds.values())
    assert first.nodes == again.nodes
    assert deeper.nodes > 1.5 * first.nodes


def test_a_model_without_a_stream_is_refused():
    with pytest.raises(MeasureError, match="Linear has no stream to rewrite: time a PreNorm model"):
        step_times(nn.Linear(16, 16), (torch.zeros(1, 8, 16),))
