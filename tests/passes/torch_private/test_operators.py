"""Operators: composite ones, their FLOPs, a copy of many tensors at once."""

from __future__ import annotations

import operator

import torch

from attnres_passes.torch_private.operators import copy_each, flop_formula, is_composite, is_gradient_hook
from tests.passes.helpers import sample, seen_by


def test_composite_operators() -> None:
    aten = torch.ops.aten
    for composite in (aten.matmul.default, aten.layer_norm.default, aten.dropout.default):
        assert is_composite(composite)
    for other in (aten.mm.default, aten.add.Tensor, aten.size.default, torch.add, operator.add, "sinh"):
        assert not is_composite(other)


def test_flop_formulas_of_torch_and_ours() -> None:
    matrix = flop_formula(torch.ops.aten.mm.default)
    assert matrix is not None
    assert matrix([2, 3], [3, 5], out_val=[2, 5]) == 2 * 2 * 3 * 5
    on_cpu = flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)
    assert on_cpu is not None
    shape = [2, 4, 6, 8]
    assert on_cpu(shape, shape, shape, out_val=shape) == 2 * (2 * 2 * 4 * 6 * 6 * 8)
    ours = flop_formula(torch.ops.attnres.depth_attention.default)
    assert ours is not None
    assert ours([shape, shape], [8], out_val=shape) == 3 * 2 * 2 * 2 * 4 * 6 * 8
    assert flop_formula(torch.ops.aten.add.Tensor) is None


def test_each_tensor_is_copied_into_its_own() -> None:
    targets, sources = [torch.zeros(()), torch.zeros(2, 3)], [torch.tensor(4.0), sample(2, 3).to(torch.float32)]
    places = [target.data_ptr() for target in targets]
    copy_each(targets, sources)
    assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))
    assert [target.data_ptr() for target in targets] == places


def test_gradient_hooks_are_told_from_other_calls() -> None:
    """Whatever way a captured graph registers one."""

    def hooked(x: torch.Tensor) -> torch.Tensor:
        x = x.sin()
        x.register_hook(lambda gradient: gradient * 2)
        return x.cos()

    (found,) = seen_by(
        lambda gm: [is_gradient_hook(node.target) for node in gm.graph.nodes], hooked, torch.ones(2, requires_grad=True)
    )
    assert found.count(True) == 1
    assert not is_gradient_hook(torch.sin)
    assert is_gradient_hook("retain_grad")
