"""Norms behind reads: every spelling of a norm is recognised, what only resembles one is not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from attnres_passes.aten_trace import trace_aten
from attnres_passes.config import AttnResConfig
from attnres_passes.levels import is_depth_attention
from attnres_passes.norms import Norm, NotFused, norm_behind, norms_behind
from attnres_passes.plan import Plan
from attnres_passes.rewrite import rewrite
from attnres_passes.streams import find_streams
from tests import zoo
from tests.passes.helpers import captured, sample

WIDTH = 8
Function = Callable[["Written", Tensor], Tensor]


class Written(nn.Module):
    """A norm, or what is none, as a function; with two vectors and a matrix to use."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(WIDTH))
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Stack(nn.Module):
    """PreNorm sublayers, each behind its own norm."""

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)
        self.linear = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in norms)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        for norm, linear in zip(self.norms, self.linear, strict=True):
            x = x + linear(norm(x))
        return self.norms[-1](x)


@dataclasses.dataclass
class Found:
    """A rewritten model and what the pass says of it."""

    gm: GraphModule
    plan: Plan
    inputs: tuple[Any, ...]

    def verdicts(self) -> list[Norm | NotFused]:
        return list(norms_behind(self.gm, self.plan).values())

    def norms(self) -> list[Norm]:
        verdicts = self.verdicts()
        assert verdicts
        assert all(isinstance(verdict, Norm) for verdict in verdicts), verdicts
        return verdicts

    def node(self, name: str) -> Node:
        """The only node whose target ends with `name`."""
        (node,) = [node for node in self.gm.graph.nodes if target_of(node).split(".")[-1] == name]
        return node


def rewritten_model(model: nn.Module, *args: Any, normed: bool = False) -> Found:
    """The rewritten graph of a model. normed: whether to say of every read that it is normed."""
    graph = captured(model, *args)
    analysis = find_streams(trace_aten(graph.gm), AttnResConfig(block_size=1, allow_unnormed=normed))
    assert analysis.plan.streams, analysis.plan
    result, plan = rewrite(graph.gm, analysis), analysis.plan
    if normed:
        streams = tuple(
            dataclasses.replace(stream, reads=tuple(dataclasses.replace(read, normed=True) for read in stream.reads))
            for stream in plan.streams
        )
        plan = dataclasses.replace(plan, streams=streams)
    parameters = [torch.randn(plan.streams[slot.stream].width) for slot in result.slots]
    return Found(result.gm, plan, (*graph.inputs, *parameters))


def stacked(norm: Callable[[], nn.Module], dtype: torch.dtype = torch.float32, normed: bool = False) -> Found:
    """Three sublayers, each behind a norm; `norm` makes one."""
    torch.manual_seed(0)
    model = Stack(norm(), norm(), norm()).to(dtype)
    return rewritten_model(model, sample(4, 5, WIDTH).to(dtype), normed=normed)


def written(function: Function, dtype: torch.dtype = torch.float32, normed: bool = True) -> Found:
    return stacked(lambda: Written(function), dtype, normed)


def target_of(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def named(node: Node | None) -> str | None:
    return None if node is None else "weight" if "weight" in node.name else "bias" if "bias" in node.name else node.name


def assert_holds(found: Found, tolerance: float) -> None:
    """Every norm gives, on the values of the graph itself, what torch's own functions give."""
    values = Interpreter(found.gm, garbage_collect_values=False)
    values.run(*found.inputs)
    norms = norms_behind(found.gm, found.plan)
    assert norms
    for read, norm in norms.items():
        assert isinstance(norm, Norm), norm
        x, result = (values.env[node].double() for node in (read, norm.output))
        weight, bias = (None if v is None else values.env[v].double() for v in (norm.weight, norm.bias))
        shape = x.shape[-1:]
        if norm.kind == "layer":
            expected = F.layer_norm(x, shape, weight, bias, norm.eps)
        else:
            expected = F.rms_norm(x, shape, weight, norm.eps) + (0.0 if bias is None else bias)
        torch.testing.assert_close(result, expected, rtol=0.0, atol=tolerance * float(expected.abs().max()))


# Recognised


def llama(self: Written, x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return self.weight * wide.to(x.dtype)


def gemma(self: Written, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide * (1.0 + self.weight.float())).type_as(x)


def unwidened(self: Written, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight


def by_hand(self: Written, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


def by_moments(self: Written, x: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt((x * x).mean(dim=-1, keepdim=True) - mean * mean + 1e-5)


def padded(self: Written, x: Tensor) -> Tensor:
    normed = llama(self, x)
    return normed + 0.0 * normed * self.bias


def root_mean_square(x: Tensor) -> Tensor:
    return x * (x * x).mean(-1, keepdim=True).rsqrt()


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
    from attnres_compile.capture import capture

    model, args, kwargs = zoo.by_name(name).build()
    (graph,) = capture(model.to(dtype), args, kwargs).graphs
    analysis = find_streams(trace_aten(graph.gm), AttnResConfig(num_blocks=2))
    result = rewrite(graph.gm, analysis)
    parameters = [torch.randn(analysis.plan.streams[slot.stream].width) for slot in result.slots]
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


@pytest.mark.parametrize("after", [F.gelu, torch.relu, lambda y: 2 * y, lambda y: y + y.mean(-1, keepdim=True)])
def test_what_follows_stays_outside(after: Callable[[Tensor], Tensor]) -> None:
    found = written(lambda self, x: after(F.layer_norm(x, (WIDTH,), self.weight, self.bias)))
    assert [target_of(norm.output) for norm in found.norms()] == ["layer_norm"] * 3
    assert {(named(norm.weight), named(norm.bias)) for norm in found.norms()} == {("weight", "bias")}


def test_product_with_another_value_stays_outside() -> None:
    class Gated(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = gate = x.sinh()
            for norm, linear in zip(self.norms, self.linear, strict=True):
                x = x + linear(norm(x) * gate)
            return self.norms[-1](x)

    found = rewritten_model(Gated(*(Written(llama) for _ in range(3))), sample().float(), normed=True)
    assert [tuple(map(target_of, norm.output.users)) for norm in found.norms()] == [("mul",), ("mul",), ("output",)]
    assert {named(norm.weight) for norm in found.norms()} == {"weight"}


def test_vectors_that_are_no_expression_of_vectors_stay_outside() -> None:
    """The second read stands between the first one and its norm, and so does what is made of it."""

    def function(self: Written, x: Tensor) -> Tensor:
        other = (x @ self.matrix).mean((0, 1))
        return F.layer_norm(x, (WIDTH,)) * other * (self.weight.outer(self.bias) @ self.bias)

    verdicts = written(function).verdicts()
    norms = [verdict for verdict in verdicts if isinstance(verdict, Norm)]
    assert len(norms) == 3
    assert {(norm.weight, target_of(norm.output)) for norm in norms} == {(None, "layer_norm")}


def test_vector_that_depends_on_the_read_stays_outside() -> None:
    """The read's first row, through a node that needs a value which is no vector."""
    found = stacked(lambda: nn.LayerNorm(WIDTH, elementwise_affine=False))
    graph = found.gm.graph
    (read, norm), *_ = norms_behind(found.gm, found.plan).items()
    assert isinstance(norm, Norm)
    bias = next(node for node in graph.nodes if node.op == "placeholder" and named(node) == "bias")
    with graph.inserting_after(norm.output):
        product = graph.call_function(torch.mul)
    norm.output.replace_all_uses_with(product)
    with graph.inserting_after(read):
        vector = graph.call_function(torch.mul)
    with graph.inserting_after(read):
        row, number = (graph.call_function(torch.select, (node, 0, 0)) for node in (read, bias))
    for node, args in ((product, (norm.output, vector)), (vector, (row, number))):
        node.args = args
    value = read.meta["example_value"]
    for node, shown in ((product, value), (row, value[0, 0]), (vector, value[0, 0]), (number, value[0, 0, 0])):
        node.meta["example_value"] = shown
    assert norm_behind(read, found.plan) == dataclasses.replace(norm, value_is_used=True)


# Refused


def dropped(self: Written, x: Tensor) -> Tensor:
    return F.layer_norm(F.dropout(x, 0.5), (WIDTH,))


def of_heads(self: Written, x: Tensor) -> Tensor:
    heads = x.unflatten(-1, (2, WIDTH // 2))
    return F.rms_norm(heads, (WIDTH // 2,), eps=1e-6).flatten(-2)


def of_groups(self: Written, x: Tensor) -> Tensor:
    return F.group_norm(x.flatten(0, 1), 2).view_as(x)


def of_half(self: Written, x: Tensor) -> Tensor:
    return torch.cat([F.layer_norm(x[..., : WIDTH // 2], (WIDTH // 2,)), x[..., WIDTH // 2 :]], -1)


def of_batch(self: Written, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (0, 1), correction=0)
    return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


def detached(self: Written, x: Tensor) -> Tensor:
    return x * (x.detach().square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def constant(self: Written, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,)).detach()


def in_place(self: Written, x: Tensor) -> Tensor:
    centred = x.clone()
    centred -= x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def spread(x: Tensor, correction: int = 0) -> Tensor:
    return x.var(-1, correction=correction, keepdim=True)


def read_twice(self: Written, x: Tensor) -> Tensor:
    inverse = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return ((x * inverse * self.weight) @ self.matrix) * inverse


def under_no_grad(self: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.layer_norm(x, (WIDTH,), self.weight)


def partly_under_no_grad(self: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        inverse = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return x * inverse


def under_autocast(self: Written, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.layer_norm(x, (WIDTH,), self.weight)


def of_fixed_shape(self: Written, x: Tensor) -> Tensor:
    return F.layer_norm(x.reshape(20, WIDTH), (WIDTH,)).reshape(4, 5, WIDTH)


NO_NORM = "no norm follows"
MODES = "the norm and the read are under different grad or autocast modes"
REFUSED: dict[str, tuple[Function, str]] = {
    "a linear layer": (lambda self, x: x @ self.matrix, NO_NORM),
    "L2 normalisation": (lambda self, x: F.normalize(x, dim=-1), NO_NORM),
    "clamped root mean square": (lambda self, x: F.normalize(x, dim=-1) * WIDTH**0.5, NO_NORM),
    "softmax": (lambda self, x: x.softmax(-1), NO_NORM),
    "eps beside the deviation": (lambda self, x: (x - x.mean(-1, keepdim=True)) / (spread(x).sqrt() + 1e-6), NO_NORM),
    "eps behind the root": (lambda self, x: x * (x.square().mean(-1, keepdim=True).rsqrt() + 1e-6), NO_NORM),
    "no eps but a bound": (
        lambda self, x: x * x.square().mean(-1, keepdim=True).clamp(min=1e-6).rsqrt(),
        NO_NORM,
    ),
    "unbiased variance": (
        lambda self, x: (x - x.mean(-1, keepdim=True)) * (spread(x, 1) + 1e-5).rsqrt(),
        NO_NORM,
    ),
    "mean not taken off": (lambda self, x: x * (spread(x) + 1e-5).rsqrt(), NO_NORM),
    "mean taken off in part": (
        lambda self, x: (x - x.mean(-1, keepdim=True)) * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
        NO_NORM,
    ),
    "mean over everything": (lambda self, x: x * (x.square().mean() + 1e-6).rsqrt(), NO_NORM),
    "largest element": (lambda self, x: x / (x.abs().amax(-1, keepdim=True) + 1e-6), NO_NORM),
    "eps of the sum": (lambda self, x: x * WIDTH**0.5 * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt(), NO_NORM),
    "heads": (of_heads, NO_NORM),
    "groups": (of_groups, NO_NORM),
    "half of the features": (of_half, NO_NORM),
    "batch statistics": (of_batch, NO_NORM),
    "a constant factor": (lambda self, x: F.layer_norm(3 * x, (WIDTH,), eps=1e-2), NO_NORM),
    "weight before the statistics": (lambda self, x: F.layer_norm(x * self.weight, (WIDTH,)), NO_NORM),
    "fixed shapes": (of_fixed_shape, "what follows cannot be executed by itself (RuntimeError)"),
    "dropout inside": (dropped, "the norm draws random numbers"),
    "in place": (in_place, "a value inside the norm is changed in place"),
    "detached statistics": (detached, "the gradient is not that of a norm"),
    "inner value read outside": (read_twice, "a value inside the norm has two readers, one of them outside"),
    "under no_grad": (under_no_grad, MODES),
    "statistics under no_grad": (partly_under_no_grad, MODES),
    "under autocast": (under_autocast, MODES),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    assert set(written(function).verdicts()) == {NotFused(reason)}


def test_detached_norm_is_recognised_without_the_detach() -> None:
    assert {target_of(norm.output) for norm in written(constant).norms()} == {"layer_norm"}


@pytest.mark.parametrize("shape", [(1, WIDTH), (1, 1, WIDTH)])
def test_weight_with_more_axes_stays_outside(shape: tuple[int, ...]) -> None:
    def function(self: Written, x: Tensor) -> Tensor:
        return root_mean_square(x) * self.weight.reshape(shape)

    assert {norm.weight for norm in written(function).norms()} == {None}


def test_half_precision_that_rounds_the_statistics_away() -> None:
    """Squares of numbers around a thousand overflow in fp16."""
    reasons = {verdict.reason for verdict in written(unwidened, torch.float16).verdicts()}
    assert reasons == {"the norm loses more than four roundings would"}


def test_rounding_to_half_precision_in_single_precision() -> None:
    def function(self: Written, x: Tensor) -> Tensor:
        return F.layer_norm(x.bfloat16(), (WIDTH,)).float()

    assert {verdict.reason for verdict in written(function).verdicts()} == {NO_NORM}


def test_output_of_another_dtype() -> None:
    def function(self: Written, x: Tensor) -> Tensor:
        return (F.layer_norm(x.float(), (WIDTH,)) @ self.matrix.float()).bfloat16()

    assert set(written(function, torch.bfloat16).verdicts()) == {NotFused(NO_NORM)}


def test_unnormed_read() -> None:
    found = stacked(lambda: nn.LayerNorm(WIDTH))
    reads = tuple(dataclasses.replace(read, normed=read.state != 2) for read in found.plan.streams[0].reads)
    plan = dataclasses.replace(found.plan, streams=(dataclasses.replace(found.plan.streams[0], reads=reads),))
    verdicts = list(norms_behind(found.gm, plan).values())
    assert [isinstance(verdict, Norm) for verdict in verdicts] == [True, False, True]
    assert verdicts[1] == NotFused("the read is not normed")


def test_double_precision() -> None:
    verdicts = stacked(lambda: nn.LayerNorm(WIDTH), torch.float64).verdicts()
    assert verdicts == [NotFused("fp64 has no generated kernel")] * 3


# Readers of the read, of inner nodes, and of vectors


class TwoNorms(nn.Module):
    """Attention and MLP side by side, each behind a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.right = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.linear = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sinh()
        for left, right, linear in zip(self.left, self.right, self.linear, strict=True):
            x = x + (linear(left(x)) + linear(right(x)))
        return x.sum()


def test_first_of_two_norms_of_one_value() -> None:
    found = rewritten_model(TwoNorms(), sample().float(), normed=True)
    first, second, *_ = [node for node in found.gm.graph.nodes if is_depth_attention(node)]
    assert first.args[0] == second.args[0]
    assert [(norm.kind, norm.value_is_used) for norm in found.verdicts()[:2]] == [("layer", False), ("rms", False)]
    second.replace_all_uses_with(first)
    norm = norm_behind(first, found.plan)
    assert isinstance(norm, Norm)
    assert (norm.kind, norm.value_is_used, len(norm.inner)) == ("layer", True, 1)
    assert norm_behind(second, found.plan) == NotFused(NO_NORM)


def test_value_that_is_returned_is_used() -> None:
    found = stacked(lambda: nn.LayerNorm(WIDTH))
    read, *_ = norms = norms_behind(found.gm, found.plan)
    output = next(node for node in found.gm.graph.nodes if node.op == "output")
    output.args = ((*output.args[0], read),)
    after = norms_behind(found.gm, found.plan)
    assert after == {**norms, read: dataclasses.replace(norms[read], value_is_used=True)}


def test_vector_read_by_another_before_the_norm() -> None:
    found = stacked(lambda: nn.LayerNorm(WIDTH))
    (read, norm), *_ = norms_behind(found.gm, found.plan).items()
    assert isinstance(norm, Norm)
    with found.gm.graph.inserting_after(read):
        found.gm.graph.call_method("mul_", (norm.weight, 2.0))
    reason = "a vector of the norm has another reader between the read and the norm"
    assert norm_behind(read, found.plan) == NotFused(reason)
