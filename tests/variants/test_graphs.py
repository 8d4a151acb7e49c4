"""Combinations of options through all passes, against the form by hand: one capture, many plans."""

from __future__ import annotations

import functools
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.capture.capture import capture
from attnres_compile.capture.pieces import Captured
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.read_parameters import forms_of_read
from attnres_passes.pipeline import run_passes
from tests.variants.toy import WIDTH, Toy, by_hand, states, toy


@functools.cache
def model() -> Toy:
    return toy(5)


@functools.cache
def graph() -> tuple[Captured, AtenTrace]:
    (found,) = capture(model(), (states(),), None).graphs
    return found, trace_aten(found.gm)


options = st.fixed_dictionaries(
    {"block_size": st.integers(1, 4), "scale": st.sampled_from(["mean", "sum"])},
    optional={
        "key_norm": st.sampled_from(["plain", "none"]),
        "logit_scale": st.sampled_from([0.3, 2.0]),
        "mixing": st.just("sigmoid"),
        "window": st.integers(1, 4),
        "heads": st.sampled_from([2, 8]),
        "query": st.just("input"),
        "value_norm": st.just("plain"),
    },
)


def lowered(config: AttnResConfig, differentiates: bool) -> tuple[AnalysedGraph, Any]:
    captured, trace = graph()
    analysed = AnalysedGraph(captured, find_streams(trace, config))
    return analysed, run_passes(captured.gm, analysed.analysis, differentiates=differentiates)


@settings(max_examples=10, deadline=None)
@given(options, st.sampled_from(["auto", "direct", "two_phase", "naive"]), st.integers(0, 2**32))
def test_every_combination_is_what_it_says(chosen: dict[str, Any], schedule: str, seed: int) -> None:
    by_definition = AttnResConfig(**chosen).mechanism.by_definition
    config = AttnResConfig(**chosen, schedule="auto" if by_definition else schedule)
    analysed, levels = lowered(config, differentiates=True)
    generator = torch.Generator().manual_seed(seed)
    forms = forms_of_read(config.mechanism, WIDTH)
    reads: list[dict[str, Tensor]] = [
        {
            form.path: torch.randn(form.shape, generator=generator, dtype=torch.float64).requires_grad_()
            for form in forms
        }
        for _ in analysed.analysis.plan.depth_reads
    ]
    added = [parameter for read in reads for parameter in read.values()]
    inputs = [value.detach() if value.ndim > 2 else value for value in analysed.captured.inputs]
    x = next(k for k, value in enumerate(inputs) if value.ndim > 2)
    inputs[x] = inputs[x].clone().requires_grad_()

    (found,) = levels.lowered(*inputs, *added)
    block_size, variant = chosen["block_size"], {name: chosen[name] for name in chosen if name != "block_size"}
    expected = by_hand(model(), inputs[x], reads, block_size, **variant)

    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    leaves = [inputs[x], *model().parameters(), *added]
    wanted = torch.autograd.grad(expected, leaves, direction)
    gradients = torch.autograd.grad(found, leaves, direction)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
