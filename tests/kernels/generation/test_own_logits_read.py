"""Reads that make their own logits, in Triton's interpreter, against the equations in fp64 and autograd's gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from attnres_kernels.autograd.own_logits_reads import own_logits_read
from attnres_kernels.definition import naive, scheduled
from attnres_kernels.definition.read_parts import Neighbours
from attnres_kernels.errors import UnsupportedSourcesError
from attnres_kernels.launch import launch_own_logits_read, tiling
from tests.kernels.generation.sweep import DTYPES, EPS, NORMS, ROWS, TOLERANCES, WIDTHS, assert_close, norm_eps, sweep

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_outputs")]


@dataclass(frozen=True)
class Case:
    """One read. sources, partial, branch: as ``own_logits_read``; norm: kind, whether it has a weight, and a bias."""

    rows: int
    width: int
    sources: int
    has_partial: bool
    adds: bool
    norm: tuple[str, int, int] | None
    returns_value: bool
    factor: float
    dtype: torch.dtype

    def inputs(self, seed: int) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, spread: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * spread).to(self.dtype).requires_grad_()

        wide = self.rows, self.width
        _, has_weight, has_bias = self.norm or ("", 0, 0)
        return {f"source {i}": draw(*wide) for i in range(self.sources)} | {
            "partial": draw(*wide) if self.has_partial else None,
            "branch": draw(*wide) if self.adds else None,
            "query": draw(self.width, spread=self.width**-0.5),
            "key_weight": draw(self.width),
            "norm_weight": draw(self.width) if has_weight else None,
            "norm_bias": draw(self.width) if has_bias else None,
        }

    def made(self) -> list[str]:
        has_value = self.returns_value or self.norm is None
        return ["value"] * has_value + ["normed"] * (self.norm is not None) + ["new partial"] * self.adds

    def by_kernel(self, given: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        sources, rest = _parted(given)
        query, key_weight = rest.pop("query"), rest.pop("key_weight")
        assert query is not None
        assert key_weight is not None
        partial, of_norm = rest.pop("partial"), None if self.norm is None else self.norm[0]
        behind = Neighbours(norm=of_norm, norm_eps=norm_eps(self.width), returns_value=self.returns_value, **rest)
        return own_logits_read(sources, partial, query, key_weight, self.factor, EPS, behind)

    def by_definition(self, given: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        """The equations, and the norm behind, in the dtype of what is given."""
        sources, rest = _parted(given)
        partial, branch, query, key_weight = (rest[name] for name in ("partial", "branch", "query", "key_weight"))
        assert query is not None
        assert key_weight is not None
        if branch is not None:
            assert partial is not None
            partial = partial + branch
        values = [*sources, *([] if partial is None else [partial])]
        value = self.factor * naive.depth_attention(values, query * key_weight, EPS, "mean")
        outputs = [value] if self.returns_value or self.norm is None else []
        if self.norm is not None:
            vectors = rest["norm_weight"], rest["norm_bias"]
            outputs.append(scheduled.normalise(value, self.norm[0], norm_eps(self.width), *vectors))
        return (*outputs, *([partial] if branch is not None and partial is not None else []))


def _parted(given: dict[str, Tensor | None]) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    sources = [x for name, x in given.items() if name.startswith("source") and x is not None]
    return sources, {name: x for name, x in given.items() if not name.startswith("source")}


def compare(case: Case, seed: int) -> None:
    """Every output, and the gradient of every input; some outputs of some cases have no gradient."""
    given, tolerance = case.inputs(seed), TOLERANCES[case.dtype]
    exact = {name: None if x is None else x.detach().double().requires_grad_() for name, x in given.items()}
    if case.adds:  # The sum is rounded before it is read.
        partial, branch = given["partial"], given["branch"]
        assert partial is not None
        assert branch is not None
        rounding = (partial + branch).detach().double() - (partial.double() + branch.double()).detach()
        of_branch = exact["branch"]
        assert of_branch is not None
        exact["branch"] = (of_branch.detach() + rounding).requires_grad_()
    outputs, expected = case.by_kernel(given), case.by_definition(exact)
    assert len(outputs) == len(expected) == len(case.made())
    for name, actual, wanted in zip(case.made(), outputs, expected, strict=True):
        assert actual.dtype == case.dtype
        assert_close(actual.detach(), wanted.detach(), tolerance, name)
    chosen = [i for i in range(len(outputs)) if (seed + i) % 3 or len(outputs) == 1]
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(expected[i].shape, generator=generator).to(case.dtype) for i in chosen]
    arguments = {"allow_unused": True, "materialize_grads": True}
    names = [name for name, x in given.items() if x is not None]
    leaves = [[x for x in of.values() if x is not None] for of in (given, exact)]
    found = torch.autograd.grad([outputs[i] for i in chosen], leaves[0], grads, **arguments)
    exactly = [grad.double() for grad in grads]
    wanted = torch.autograd.grad([expected[i] for i in chosen], leaves[1], exactly, **arguments)
    for name, one, other in zip(names, found, wanted, strict=True):
        assert_close(one, other, tolerance, f"gradient of {name}")


@sweep(20)
@given(
    ROWS,
    WIDTHS,
    st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 33)),
    st.sampled_from((None, "partial", "branch")),
    NORMS,
    st.booleans(),
    DTYPES,
    st.integers(0, 99),
)
@example(17, 100, 33, "branch", ("layer", 1, 1), True, torch.float32, 0)
@example(17, 33, 4, "branch", ("rms", 1, 0), False, torch.float32, 1)
@example(2, 33, 0, "partial", None, True, torch.float32, 2)
@example(17, 64, 9, None, ("rms", 1, 0), True, torch.bfloat16, 3)
@example(1, 1, 1, "partial", None, True, torch.float32, 4)
def test_one_read_and_every_gradient(
    rows: int,
    width: int,
    sources: int,
    state: str | None,
    norm: tuple[str, int, int] | None,
    returns_value: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    factor = float(sources + 1) if seed % 2 else 1.0
    compare(Case(rows, width, sources, state is not None, state == "branch", norm, returns_value, factor, dtype), seed)


@pytest.mark.parametrize("sources", [2, 6])
@pytest.mark.parametrize("norm", [None, ("layer", 1, 1)])
def test_wide_rows_are_taken_in_groups_and_read_again(
    sources: int, norm: tuple[str, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cuts that rows of 4096 and 8192 get, on narrow ones: one thread each would take as long as it is wide."""
    monkeypatch.setattr(tiling, "whole_rows", lambda width: tiling.Tiling(1, tiling.power_of_two(width), 1))
    compare(Case(3, 1100, sources, True, True, norm, True, 1.0, torch.float32), sources)


def test_one_source_gives_the_query_no_gradient_at_all() -> None:
    """A softmax over one source is 1 whatever its logit is, so these are zeros and not small numbers."""
    given = Case(17, 33, 1, False, False, None, True, 1.0, torch.float32).inputs(0)
    source, query, key_weight = given["source 0"], given["query"], given["key_weight"]
    assert source is not None
    assert query is not None
    assert key_weight is not None
    (value,) = own_logits_read([source], None, query, key_weight, 1.0, EPS)
    grads = torch.autograd.grad(value.square().sum(), [query, key_weight])
    assert torch.equal(value, source)
    assert all(torch.equal(grad, torch.zeros(33)) for grad in grads)


def test_two_runs_give_the_same_bits() -> None:
    case = Case(20, 33, 2, True, True, ("rms", 1, 0), True, 1.0, torch.float32)

    def run() -> list[Tensor]:
        given = case.inputs(0)
        leaves = [x for x in given.values() if x is not None]
        outputs = case.by_kernel(given)
        return [*outputs, *torch.autograd.grad(sum(x.square().sum() for x in outputs), leaves)]

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


def test_sources_are_read_in_place_whatever_their_strides() -> None:
    draw = torch.Generator().manual_seed(0)
    wide, turned = torch.randn(2, 5, 66, generator=draw)[..., :33], torch.randn(2, 33, 5, generator=draw).mT
    plain = torch.randn(5, 33, generator=draw).expand(2, 5, 33)
    query, key_weight = torch.randn(33, 2, generator=draw).unbind(1)
    (value,) = own_logits_read([wide, turned], plain, query, key_weight, 1.0, EPS)
    exact = [x.double() for x in (wide, turned, plain)]
    expected = naive.depth_attention(exact, query.double() * key_weight.double(), EPS, "mean")
    assert_close(value, expected, 1e-5, "value")


def test_a_read_and_its_backward_are_one_launch_each(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    honest = launch_own_logits_read.launchable
    monkeypatch.setattr(
        launch_own_logits_read, "launchable", lambda text, choices: launched.append(text) or honest(text, choices)
    )
    given = Case(3, 33, 33, True, True, ("rms", 1, 0), False, 1.0, torch.float32)
    outputs = given.by_kernel(given.inputs(0))
    assert len(launched) == 1
    outputs[0].sum().backward()
    assert len(launched) == 2


@pytest.mark.parametrize(
    ("source", "words"), [(torch.zeros(2, 3, dtype=torch.float64), "float64"), (torch.zeros(1, 16385), "16385 wide")]
)
def test_what_the_kernels_cannot_take_is_said(source: Tensor, words: str) -> None:
    vector = torch.zeros(source.shape[1])
    with pytest.raises(UnsupportedSourcesError, match=words):
        own_logits_read([source], None, vector, vector, 1.0, EPS)
