"""What becomes of a generated model: compared with its form written by hand in every schedule, or rightly declined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.capture.capture import capture
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.streams import Analysis, find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.pipeline import run_passes
from tests.generated.description import Description
from tests.generated.model import GeneratedModel, by_hand, writes_of
from tests.generated.near_misses import NEAR_MISSES, Missing
from tests.passes.helpers import assert_same

SCHEDULES = ("naive", "direct", "two_phase")
TOLERANCE = 1e-9
DRAWS = 5
"""Seed of dropout, before every run."""

Parameters = list[list[Tensor]]
"""Query and key-norm weight of each read of two sources or more, in read order, for each stream."""


def judge(description: Description, through_front_door: bool = False) -> str:
    """Capture, analyse, rewrite and run one model; "rewritten" or "declined".

    Outputs and the gradients of inputs, parameters, queries and key norms are compared, in every schedule.

    Args:
        description: of the model.
        through_front_door: prepare it and compile it with the backend as well, and verify it.

    Raises:
        AssertionError: it is not what the description says.
    """
    torch.compiler.reset()
    model = (Missing if description.near_miss else GeneratedModel)(description)
    given = model.inputs()
    config = AttnResConfig(**description.options(), inner="eager")
    (graph,) = capture(model, given, None).graphs
    analysis = find_streams(trace_aten(graph.gm), config)
    if isinstance(model, Missing):
        check_declined(description, analysis.plan)
        return "declined"
    check_plan(model, analysis.plan)
    added = random_parameters(analysis.plan)
    flat = [parameter for stream in added for parameter in stream]
    leaves = [*model.parameters(), *flat]
    expected = outcome(lambda *inputs: by_hand(model, added, *inputs), given, leaves)
    for schedule in SCHEDULES:
        compare(run_of(analysis, schedule, graph.gm, graph.inputs, given, flat), given, leaves, expected, schedule)
    if through_front_door:
        check_front_door(model, given, added, expected)
    return "rewritten"


def check_declined(description: Description, plan: Plan) -> None:
    """No stream, and the reasons that the description implies."""
    near_miss = NEAR_MISSES[description.near_miss or ""]
    assert not plan.streams, f"{description.near_miss} is taken for a stream:\n{plan}"
    reasons = {decline.reason.value for decline in plan.declined}
    expected = {near_miss.reason, near_miss.beside} - {None}
    assert reasons == expected, f"{description.near_miss}: {reasons}, not {expected}\n{plan}"


def check_plan(model: GeneratedModel, plan: Plan) -> None:
    """All streams of the description with all their writes, and each read that a norm makes is normed."""
    assert [len(stream.writes) for stream in plan.streams] == writes_of(model), plan
    assert [stream.width for stream in plan.streams] == [tower.width for tower in model.description.towers], plan
    assert not plan.partial, plan
    unnormed = sum(not read.normed for stream in plan.streams for read in stream.reads if read.num_sources > 1)
    assert unnormed == model.unnormed_reads(), plan


def random_parameters(plan: Plan) -> Parameters:
    """Queries and key-norm weights of a plan."""
    generator = torch.Generator().manual_seed(7)

    def draw(width: int, offset: float, spread: float) -> Tensor:
        noise = torch.randn(width, generator=generator, dtype=torch.float64)
        return (offset + spread * noise).requires_grad_()

    return [
        [value for _ in stream.parametrized_reads for value in (draw(stream.width, 0, 1), draw(stream.width, 1, 0.3))]
        for stream in plan.streams
    ]


def run_of(
    analysis: Analysis,
    schedule: str,
    gm: torch.fx.GraphModule,
    captured: Sequence[Any],
    given: Sequence[Tensor],
    added: Sequence[Tensor],
) -> Callable[..., Sequence[Tensor]]:
    """The lowered graph of a schedule as a function of the model's inputs.

    Args:
        analysis: of the captured graph.
        schedule: of its reads.
        gm: the captured graph.
        captured: what it was captured with.
        given: the inputs of the model among them.
        added: queries and key-norm weights.
    """
    plan = replace(analysis.plan, config=replace(analysis.plan.config, schedule=schedule))
    closed = run_passes(gm, replace(analysis, plan=plan)).closed
    places = [next((k for k, one in enumerate(given) if one is value), None) for value in captured]

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        own = [value if k is None else inputs[k] for k, value in zip(places, captured, strict=True)]
        return closed(*own, *added)

    return run


def outcome(
    function: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """Outputs, and the gradients of a fixed function of them in the inputs and in some leaves.

    Args:
        function: of the inputs.
        given: the inputs, which are copied.
        leaves: parameters of every kind.
    """
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in given]
    torch.manual_seed(DRAWS)
    outputs = list(function(*inputs))
    loss = sum(((output - 0.3) ** 3).sum() for output in outputs if output.requires_grad)
    wanted = [*(x for x in inputs if x.requires_grad), *leaves]
    return [*outputs, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def compare(
    function: Callable[..., Sequence[Tensor]],
    given: Sequence[Tensor],
    leaves: Sequence[Tensor],
    expected: Sequence[Tensor | None],
    name: str,
) -> None:
    """Compare a way to compute the model with its form written by hand.

    Args:
        function, given, leaves: those of ``outcome``.
        expected: of the form written by hand.
        name: of the way.
    """
    try:
        assert_same(outcome(function, given, leaves), expected, TOLERANCE)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error


def check_front_door(
    model: GeneratedModel, given: Sequence[Tensor], added: Parameters, expected: Sequence[Tensor | None]
) -> None:
    """What a user does: prepare, compile, call; and what she proves it by.

    Args:
        model: not prepared yet.
        given: inputs.
        added: values of its queries and key norms.
        expected: of the form written by hand.
    """
    own: list[nn.Parameter] = list(model.parameters())
    assert ac.verify(model, given, **model.description.options()).passed
    ac.prepare(model, given, **model.description.options())
    registered = list(model.attnres.parameters())
    flat = [value for stream in added for value in stream]
    assert len(registered) == len(flat)
    with torch.no_grad():
        for parameter, value in zip(registered, flat, strict=True):
            parameter.copy_(value)
    model.compile(backend="attnres", options={"inner": "eager"})
    compare(model, given, [*own, *registered], expected, "compiled")
