"""Reads by any mechanism against the form by hand, in fp64: values, and gradients of all sources and parameters."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import attnres_kernels.operators  # noqa: F401  (defines them)
from attnres_kernels.definition.mechanism import Mechanism
from attnres_kernels.definition.variants import variant_read
from attnres_kernels.errors import UnsupportedSourcesError
from attnres_passes.ir.read_parameters import forms_of_read
from tests.reference.variants import variant_mix

WIDTH, EPS = 8, 1e-3
MECHANISMS = [
    Mechanism(key_norm, scale, mixing, None, heads, query, value_norm)
    for key_norm, scale, mixing, heads, query, value_norm in itertools.product(
        ("weight", "plain", "none"), (1.0, 0.5), ("softmax", "sigmoid"), (1, 4), ("learned", "input"), ("none", "plain")
    )
]


def draw(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def given(how: Mechanism, count: int = 3) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Sources, and parameters by their names below the read."""
    generator = torch.Generator().manual_seed(0)
    sources = [draw(2, 3, WIDTH, generator=generator) for _ in range(count)]
    forms = forms_of_read(how, WIDTH)
    return sources, {form.path: draw(*form.shape, generator=generator) for form in forms}


@pytest.mark.parametrize("form", ["definition", "operator"])
def test_values_and_every_gradient(form: str) -> None:
    for how, scale in itertools.product(MECHANISMS, ("mean", "sum")):
        compare(how, scale, form)


def compare(how: Mechanism, scale: str, form: str) -> None:
    sources, named = given(how)
    parameters = list(named.values())
    expected = variant_mix(sources, named, EPS, scale, **how.differences)
    if form == "definition":
        found = variant_read(sources, parameters, EPS, scale, how)
    else:
        found = torch.ops.attnres.variant_attention(sources, parameters, EPS, scale, *how)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, [*sources, *parameters], direction)
    gradients = torch.autograd.grad(found, [*sources, *parameters], direction)
    assert all(gradient.abs().max() > 1e-3 for gradient in wanted), how
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_training_starts_where_the_papers_does() -> None:
    """With the parameters as they begin, every source weighs 1/n, as it is or normed."""
    for how in MECHANISMS:
        sources, _ = given(how)
        mixed = [
            torch.nn.functional.rms_norm(x, (WIDTH,), eps=EPS) if how.value_norm == "plain" else x for x in sources
        ]
        forms = forms_of_read(how, WIDTH)
        fresh = [torch.full(form.shape, float(form.first == "ones"), dtype=torch.float64) for form in forms]
        torch.testing.assert_close(variant_read(sources, fresh, EPS, "mean", how), torch.stack(mixed).mean(0))
        torch.testing.assert_close(variant_read(sources, fresh, EPS, "sum", how), torch.stack(mixed).sum(0))


def test_the_read_of_inkling2() -> None:
    """Against transformers' own, with a query for each of three reads."""
    modeling = pytest.importorskip("transformers.models.inkling2.modeling_inkling2")
    theirs = modeling.Inkling2BlockAttentionResidual(SimpleNamespace(hidden_size=WIDTH), num_queries=3)
    how = Mechanism(key_norm="plain", logit_scale=WIDTH**-0.5, value_norm="plain", queries="qkv")
    generator = torch.Generator().manual_seed(0)
    *blocks, partial = (torch.randn(2, 3, WIDTH, generator=generator) for _ in range(4))
    with torch.no_grad():
        theirs.query.normal_(generator=generator)
        expected = theirs(torch.stack(blocks, -2), partial)
    for query, one in zip(theirs.query, expected, strict=True):
        torch.testing.assert_close(variant_read([*blocks, partial], [query], 1e-6, "mean", how), one)


def test_low_precision_is_rounded_once() -> None:
    sources, named = given(Mechanism("none", 0.5, "sigmoid", None, 2))
    how = Mechanism("none", 0.5, "sigmoid", None, 2)
    low = [source.detach().bfloat16() for source in sources]
    parameters = [parameter.detach().bfloat16() for parameter in named.values()]
    found = variant_read(low, parameters, EPS, "mean", how)
    expected = variant_read([x.double() for x in low], [x.double() for x in parameters], EPS, "mean", how)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16())


def test_parameters_that_do_not_fit() -> None:
    sources, named = given(Mechanism(heads=3))
    with pytest.raises(UnsupportedSourcesError, match=r"shape \[8\]: pass one of \[d, d\]"):
        variant_read(sources, list(named.values()), EPS, "mean", Mechanism(query="input"))
    with pytest.raises(UnsupportedSourcesError, match="heads=3 does not divide the width 8"):
        variant_read(sources, list(named.values()), EPS, "mean", Mechanism(heads=3))
