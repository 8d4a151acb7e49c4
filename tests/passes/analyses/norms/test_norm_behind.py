"""Norms behind reads: every spelling of a norm is recognised."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.norms.norm_behind import norm_behind, norms_behind
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.rewrite.rewrite import rewrite
from tests import zoo
from tests.passes.analyses.norms.norm_models import (
    WIDTH,
    Found,
    Stack,
    Written,
    assert_holds,
    llama,
    named,
    rewritten_model,
    root_mean_square,
    stacked,
    target_of,
    unwidened,
)
from tests.passes.helpers import sample


def gemma(self: Written, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide * (1.0 + self.weight.float())).type_as(x)


def by_hand(self: Written, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


def by_moments(self: Written, x: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt((x * x).mean(dim=-1, keepdim=True) - mean * mean + 1e-5)


def padded(self: Written, x: Tensor) -> Tensor:
    normed = llama(self, x)
    return normed + 0.0 * normed * self.bias


Expected = tuple[str, float, str | None, str | None]
FP32_EPS = torch.finfo(torch.float32).eps
RECOGNISED: dict[str, tuple[Callable[[], nn.Module], Expected]] = {
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), ("layer", 1e-5, "weight", "bias")),
    "LayerNorm without bias": (lambda: nn.LayerNorm(WIDTH, eps=1e-12, bias=False), ("layer", 1e-12, "weight", None)),
    "LayerNorm without both": (lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), ("layer", 1e-5, None, None)),
    "layer_norm, default eps": (lambda: Written(lambda s, x: F.layer_norm(x, (WIDTH,))), ("layer", 1e-5, None, None)),
    "layer_norm, eps=0": (lambda: Written(lambda s, x: F.layer_norm(x, (WIDTH,), eps=0.0)), ("layer", 0.0, None, None)),
    "RMSNorm": (lambda: nn.RMSNorm(WIDTH, eps=1e-6), ("rms", 1e-6, "weight", None)),
    "RMSNorm, default eps": (lambda: nn.RMSNorm(WIDTH), ("rms", FP32_EPS, "weight", None)),
    "Llama": (lambda: Written(llama), ("rms", 1e-6, "weight", None)),
    "Gemma": (lambda: Written(gemma), ("rms", 1e-6, "add", None)),
    "division by the root": (lambda: Written(unwidened), ("rms", 1e-6, "weight", None)),
    "LayerNorm by hand": (lambda: Written(by_hand), ("layer", 1e-5, "weight", "bias")),
    "LayerNorm by moments": (lambda: Written(by_moments), ("layer", 1e-5, None, None)),
    "root mean square": (lambda: Written(lambda s, x: root_mean_square(x)), ("rms", 0.0, None, None)),
    "shifted, unscaled": (lambda: Written(lambda s, x: root_mean_square(x) + s.bias), ("rms", 0.0, None, "bias")),
    "a vector without effect": (lambda: Written(padded), ("rms", 1e-6, "weight", None)),
    "identities behind it": (
        lambda: Written(lambda s, x: llama(s, x)[:, :].contiguous()),
        ("rms", 1e-6, "weight", None),
    ),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_recognised(name: str) -> None:
    norm, expected = RECOGNISED[name]
    found = stacked(norm)
    assert len(found.plan.streams[0].parametrized_reads) == len(found.norms()) == 3
    for norm, (read, same) in zip(found.norms(), norms_behind(found.gm, found.plan).items(), strict=True):
        assert norm == same == norm_behind(read, found.plan)
        added = "add" if norm.weight is not None and target_of(norm.weight) == "add" else None
        assert (norm.kind, norm.eps, added or named(norm.weight), named(norm.bias)) == expected
        assert not norm.value_is_used
        assert norm.inner[-1] is norm.output
        (reader,) = norm.output.users
        assert target_of(reader) in ("linear", "output")
        between = itertools.dropwhile(lambda node, read=read: node is not read, found.gm.graph.nodes)
        assert list(norm.inner) == [node for node in between if node in norm.inner]
    assert_holds(found, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "RMSNorm, default eps", "Llama", "Gemma"])
def test_recognised_in_half_precision(name: str, dtype: torch.dtype) -> None:
    norm, (kind, eps, *_) = RECOGNISED[name]
    found = stacked(norm, dtype)
    assert [(norm.kind, norm.eps) for norm in found.norms()] == [(kind, eps)] * 3
    assert_holds(found, 3e-2 if dtype is torch.bfloat16 else 4e-3)


def test_recognised_with_weights_of_another_dtype() -> None:
    def function(self: Written, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight).bfloat16()

    torch.manual_seed(0)
    model = Stack(*(Written(function) for _ in range(3))).to(torch.bfloat16)
    for norm in model.norms:
        norm.float()
    found = rewritten_model(model, sample().bfloat16())
    assert {(norm.kind, norm.eps, named(norm.weight)) for norm in found.norms()} == {("rms", 1e-5, "weight")}
    assert_holds(found, 3e-2)


ZOO: dict[str, tuple[str, float, bool, bool]] = {
    "hf_gpt2": ("layer", 1e-5, True, True),
    "hf_llama": ("rms", 1e-6, True, False),
    "hf_gemma3": ("rms", 1e-6, True, False),
    "hf_t5": ("rms", 1e-6, True, False),
    "hf_olmo": ("layer", 1e-5, False, False),
    "hf_cohere": ("layer", 1e-5, True, False),
    "timm_vit": ("layer", 1e-6, True, True),
}


def of_zoo(name: str, dtype: torch.dtype = torch.float32) -> Found:
    from attnres_compile.capture.capture import capture

    model, args, kwargs = zoo.by_name(name).build()
    (graph,) = capture(model.to(dtype), args, kwargs).graphs
    analysis = find_streams(trace_aten(graph.gm), AttnResConfig(num_blocks=2))
    result = rewrite(graph.gm, analysis)
    parameters = [torch.randn(analysis.plan.streams[one.read.stream].width) for one in result.parameters]
    return Found(result.gm, analysis.plan, (*graph.inputs, *parameters))


@pytest.mark.parametrize("name", ZOO)
def test_recognised_in_models(name: str) -> None:
    found = of_zoo(name)
    facts = {(n.kind, n.eps, n.weight is not None, n.bias is not None, n.value_is_used) for n in found.norms()}
    assert facts == {(*ZOO[name], False)}
    assert_holds(found, 1e-5)


@pytest.mark.parametrize("name", ["hf_llama", "hf_gemma3"])
def test_recognised_in_models_of_half_precision(name: str) -> None:
    found = of_zoo(name, torch.bfloat16)
    assert {(norm.kind, norm.eps, norm.weight is not None) for norm in found.norms()} == {("rms", 1e-6, True)}
    assert_holds(found, 3e-2)


def test_symbolic_sizes() -> None:
    torch.manual_seed(0)
    model, x = Stack(*(nn.LayerNorm(WIDTH) for _ in range(3))), sample().float()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    found = rewritten_model(model, x)
    read = next(node for node in found.gm.graph.nodes if is_depth_attention(node))
    assert not isinstance(read.meta["example_value"].shape[0], int)
    assert {(norm.kind, norm.eps) for norm in found.norms()} == {("layer", 1e-5)}
