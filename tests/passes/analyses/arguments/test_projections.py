"""Which projections behind a norm make q, k and v, and the reason where that cannot be told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.nn.attention.flex_attention import flex_attention

from attnres_passes.analyses.norms.norm_behind import modes
from attnres_passes.inline.norms_apart import analysed_apart
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Read
from attnres_passes.ir.read_arguments import argument_of, is_told
from tests.passes.helpers import WIDTH, Function, captured, sample

HEADS = 2
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of q, k and v, `[B, T, heads, d / heads]`, gives `[B, T, heads, d / heads]`."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def by_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.5
    scores = scores + torch.full(scores.shape[-2:], -1e9, dtype=q.dtype).triu(1)
    weights = F.dropout(torch.softmax(scores, -1, dtype=torch.float64).to(q.dtype), 0.1)
    return torch.matmul(weights, v).transpose(1, 2)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bqhc,bkhc->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bkhc->bqhc", weights, v)


def keys_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores with a row for each key, and the values before the weights."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = torch.matmul(k, q.transpose(2, 3)).softmax(-2)
    return torch.matmul(v.transpose(2, 3), weights).permute(0, 3, 1, 2)


def with_a_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    bias = torch.ones(q.shape[1], k.shape[1], dtype=q.dtype).expand(q.shape[0], -1, -1)
    weights = torch.baddbmm(bias, q, k.transpose(1, 2), beta=0.5, alpha=0.3).softmax(-1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS)).transpose(1, 2)


def with_sinks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A column of the softmax that is of no key."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q, k.transpose(2, 3))
    scores = torch.cat([scores, torch.zeros_like(scores[..., :1])], -1)
    return torch.matmul(scores.softmax(-1)[..., :-1], v).transpose(1, 2)


def two_maps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The difference of two attentions, which share nothing but the values."""
    (q, r), (k, s) = q.chunk(2, -1), k.chunk(2, -1)
    q, r, k, s, v = (x.transpose(1, 2) for x in (q, r, k, s, v))
    first, second = F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(r, s, v)
    return (first - 0.5 * second).transpose(1, 2)


def rotated(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * 0.8 + torch.cat([-right, left], -1) * 0.6


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1))


def of(attend: Callable[[Function, Tensor], Tensor]) -> Callable[[Function, Tensor], Tensor]:
    """Two sublayers, of which the second attends."""

    def stack(self: Function, x: Tensor) -> Tensor:
        x = x + self.linear[0](self.norm[0](x))
        x = x + self.linear[4](attend(self, x))
        return self.norm[-1](x)

    return stack


def projected(mix: Mix) -> Callable[[Function, Tensor], Tensor]:
    def attend(self: Function, x: Tensor) -> Tensor:
        n = self.norm[1](x)
        # k before q, so that their order says nothing.
        v, k, q = (heads(self.linear[i](n)) for i in (3, 2, 1))
        return mix(rotated(q), rotated(k), v).flatten(2)

    return of(attend)


def told_before(node: Node) -> str:
    """What the nearest reading node before a projection is for."""
    pending = [node]
    while not is_told(pending[0]):
        pending.extend(pending.pop(0).all_input_nodes)
    return argument_of(pending[0]).name


def apart(function: Callable[[Function, Tensor], Tensor], *args: Tensor) -> tuple[list[Read], dict[int, str]]:
    """The reads behind the first write, and by projection, what the norm that it is given is for."""
    gm, analysis = analysed_apart(
        captured(function, *args, layers=5).gm, AttnResConfig(queries="qkv", allow_unnormed=True)
    )
    (stream,) = analysis.plan.streams
    given = {}
    for node in gm.graph.nodes:
        if getattr(node.target, "__name__", "") == "linear":
            (number,) = (k for k in range(5) if f"linear_modules_{k}_" in str(node.args[1]))
            given |= {number: told_before(node)} if number in (1, 2, 3) else {}
    return [read for read in stream.reads if read.state == 1], given


@pytest.mark.parametrize(
    "mix", [sdpa, by_softmax, by_einsum, keys_first, with_a_bias, with_sinks, two_maps], ids=lambda mix: mix.__name__
)
def test_told_apart_by_what_an_attention_takes_them_as(mix: Mix) -> None:
    reads, given = apart(projected(mix))
    assert [read.argument for read in reads] == ["q", "k", "v"]
    assert not any(read.one_query for read in reads)
    assert given == {1: "q", 2: "k", 3: "v"}


def test_flex_attention() -> None:
    """On a CPU, it has no backward."""

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
        mixed = flex_attention(q, k, v)
        assert isinstance(mixed, Tensor)
        return mixed.double().transpose(1, 2)

    with torch.no_grad():
        _, given = apart(projected(mix))
    assert given == {1: "q", 2: "k", 3: "v"}


def test_a_projection_inside_of_the_norm_of_another() -> None:
    """The keys are projected before what the queries are projected of is made."""

    def attend(self: Function, x: Tensor) -> Tensor:
        n = self.norm[1](x)
        k, v = (heads(self.linear[i](n)) for i in (2, 3))
        q = heads(self.linear[1](n * 2))
        return sdpa(q, k, v).flatten(2)

    def as_it_was(self: Function, x: Tensor) -> Tensor:
        return of(attend)(self, x)

    found = captured(as_it_was, layers=5)
    gm, analysis = analysed_apart(found.gm, AttnResConfig(queries="qkv"))
    assert [read.argument for read in analysis.plan.streams[0].reads if read.state == 1] == ["q", "k", "v"]
    torch.testing.assert_close(gm(*found.inputs), found.gm(*found.inputs), rtol=0, atol=0)


def test_a_norm_that_switches_autocast_off_inside() -> None:
    """A copy stands under the modes of what it is a copy of."""

    def attend(self: Function, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        n = unit * self.norm[1].weight
        q, k, v = (heads(self.linear[i](n)) for i in (1, 2, 3))
        return sdpa(q, k, v).flatten(2)

    gm, analysis = analysed_apart(captured(of(attend), layers=5).gm, AttnResConfig(queries="qkv"))
    assert [read.argument for read in analysis.plan.streams[0].reads if read.state == 1] == ["q", "k", "v"]
    of_nodes = modes(gm.graph)
    roots = [of_nodes[node] for node in gm.graph.nodes if getattr(node.target, "__name__", "") == "rsqrt"]
    assert len(roots) == 3
    assert len(set(roots)) == 1


@pytest.mark.parametrize("given_on", [False, True])
def test_what_else_the_norm_leads_to_keeps_a_read(given_on: bool) -> None:
    """Also where a node between gives on what it is given, as a dropout in evaluation."""

    def attend(self: Function, x: Tensor) -> Tensor:
        n = self.norm[1](x)
        q, k, v = (heads(self.linear[i](n)) for i in (1, 2, 3))
        return sdpa(q, k, v).flatten(2) * torch.sigmoid(F.dropout(n, training=False) if given_on else n)

    reads, given = apart(of(attend))
    assert [read.argument for read in reads] == ["rest", "q", "k", "v"]
    assert given == {1: "q", 2: "k", 3: "v"}


def test_a_norm_that_changes_its_own_values_in_place() -> None:
    """As torch's RMSNorm does inside, and as may be written by hand."""

    def attend(self: Function, x: Tensor) -> Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        mean_square += 1e-6
        n = F.rms_norm(x * torch.rsqrt(mean_square), (WIDTH,), eps=1e-6)
        q, k, v = (heads(self.linear[i](n)) for i in (1, 2, 3))
        return sdpa(q, k, v).flatten(2)

    reads, given = apart(of(attend))
    assert [read.argument for read in reads] == ["q", "k", "v"]
    assert given == {1: "q", 2: "k", 3: "v"}


def test_a_question_about_its_shape_is_none() -> None:
    def attend(self: Function, x: Tensor) -> Tensor:
        n = self.norm[1](x)
        # In evaluation, a dropout gives on what it is given.
        q, k, v = (heads(self.linear[i](F.dropout(n, 0.5, training=False))) for i in (1, 2, 3))
        return sdpa(q, k, v).flatten(2) + n.new_zeros(n.shape[-1])

    reads, _ = apart(of(attend))
    assert [read.argument for read in reads] == ["q", "k", "v"]


def fused(self: Function, x: Tensor) -> Tensor:
    n = self.norm[1](x)
    kv = self.linear[2](n)
    return sdpa(heads(self.linear[1](n)), heads(kv), heads(kv.tanh())).flatten(2)


def only_queries(self: Function, x: Tensor) -> Tensor:
    other = torch.ones(2, 3, HEADS, WIDTH // HEADS, dtype=x.dtype)
    return sdpa(heads(self.linear[1](self.norm[1](x))), other, other * 2).flatten(2)


def values_as_they_are(self: Function, x: Tensor) -> Tensor:
    n = self.norm[1](x)
    return sdpa(heads(self.linear[1](n)), heads(self.linear[2](n)), heads(n)).flatten(2)


def dropped(self: Function, x: Tensor) -> Tensor:
    n = F.dropout(self.norm[1](x), 0.1)
    q, k, v = (heads(self.linear[i](n)) for i in (1, 2, 3))
    return sdpa(q, k, v).flatten(2)


def changed_elsewhere(self: Function, x: Tensor) -> Tensor:
    """What is added to the norm is changed by it."""
    n = self.norm[1](x)
    n = n + self.norm[3].bias.detach().add_(n.mean())
    q, k, v = (heads(self.linear[i](n)) for i in (1, 2, 3))
    return sdpa(q, k, v).flatten(2)


def feed_forward(self: Function, x: Tensor) -> Tensor:
    return F.gelu(self.linear[1](self.norm[1](x)))


def normed_behind(self: Function, x: Tensor) -> Tensor:
    q, k, v = (heads(self.norm[i](F.linear(x, self.linear[i].weight))) for i in (1, 2, 3))
    return sdpa(q, k, v).flatten(2)


def not_normed(self: Function, x: Tensor) -> Tensor:
    q, k, v = (heads(self.linear[i](x)) for i in (1, 2, 3))
    return sdpa(q, k, v).flatten(2)


@torch.compiler.allow_in_graph
def two_products(x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return F.linear(x, left), F.linear(x, right)


def in_one_operation(self: Function, x: Tensor) -> Tensor:
    n = self.norm[1](x)
    q, k = two_products(n, self.linear[1].weight, self.linear[2].weight)
    return sdpa(heads(q), heads(k), heads(self.linear[3](n))).flatten(2)


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (fused, "k and v are of one matrix product (linear.2)"),
        (only_queries, "its norm leads to q of an attention alone"),
        (values_as_they_are, "an attention takes the normed state as v, without a matrix product"),
        (dropped, "dropout, between the state and its projections, cannot be computed twice"),
        (changed_elsewhere, "add_, between the state and its projections, cannot be computed twice"),
        (feed_forward, "no attention that is recognised takes what its norm leads to"),
        (normed_behind, "projections read the state itself, and norms are behind them"),
        (not_normed, "it is not normed"),
        (in_one_operation, "q and k are made in one operation of the graph"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_one_query_and_why(attend: Callable[[Function, Tensor], Tensor], reason: str) -> None:
    reads, given = apart(of(attend))
    assert {read.one_query for read in reads} == {reason}
    assert not any(read.argument for read in reads)
    assert not any(given.values())


def test_nothing_is_put_apart_with_one_query() -> None:
    gm = captured(projected(sdpa), sample(), layers=5).gm
    apart_gm, analysis = analysed_apart(gm, AttnResConfig())
    assert apart_gm is gm
    assert not any(read.argument or read.one_query for read in analysis.plan.streams[0].reads)
