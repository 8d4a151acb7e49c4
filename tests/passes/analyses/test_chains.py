"""Chains of additions, found by dependence and not by spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_passes.analyses.carries.carry import Carry, carry_step
from attnres_passes.analyses.chains import Candidate, _Search, find_chains, is_matrix_product, search_chains
from tests.passes.helpers import WIDTH, Function, chains_of, longest, sample, traced

Step = Callable[[Tensor, Tensor], Tensor]

ADDITIONS: dict[str, Step] = {
    "x + f": lambda x, f: x + f,
    "f + x": lambda x, f: f + x,
    "torch.add": lambda x, f: torch.add(x, f),
    "x.add": lambda x, f: x.add(f),
    "iadd": lambda x, f: x.__iadd__(f),
    "add_": lambda x, f: x.add_(f),
    "branch.add_": lambda x, f: f.add_(x),
}


def stream(add: Step, between: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[..., Tensor]:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x * 1.5
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = between(add(x, linear(norm(x))))
        return self.norm[-1](x)

    return model


@pytest.mark.parametrize("spelling", ADDITIONS)
def test_every_spelling_of_an_addition_makes_the_same_chain(spelling: str) -> None:
    trace, found = chains_of(stream(ADDITIONS[spelling]))
    chain = longest(found)
    assert len(chain.additions) == 3
    assert chain.has_product
    assert chain.forks == ()
    states = [chain.root, *(addition.after for addition in chain.additions)]
    assert [addition.state for addition in chain.additions] == states[:-1]
    assert trace.ops[trace.values[chain.root].producer].name == "aten.mul"


@pytest.mark.parametrize(
    ("between", "kinds"),
    [
        (lambda x: x.view(x.shape), {Carry.RESHAPE}),
        (lambda x: x.reshape(-1, WIDTH).reshape(2, 3, WIDTH), {Carry.RESHAPE}),
        (lambda x: x.unsqueeze(0).squeeze(0), {Carry.RESHAPE}),
        (lambda x: x.clone(), {Carry.RESHAPE}),
        (lambda x: x.transpose(0, 1), {Carry.PERMUTE}),
        (lambda x: x.permute(1, 0, 2), {Carry.PERMUTE}),
        (lambda x: x.float().double(), {Carry.CAST}),
        (lambda x: F.dropout(x, 0.1), {Carry.MASK}),
        (lambda x: F.dropout1d(x, 0.1), {Carry.MASK}),
        (lambda x: 0.5 * x, {Carry.FACTOR}),
        (lambda x: x / 3, {Carry.FACTOR}),
        (lambda x: -x, {Carry.FACTOR}),
        (lambda x: x * torch.linspace(0, 1, WIDTH).double(), {Carry.FACTOR}),
        (lambda x: x / torch.linspace(1, 2, WIDTH).double(), {Carry.FACTOR}),
        (lambda x: (torch.arange(3) < 2)[:, None] * x, {Carry.FACTOR}),
        (lambda x: x.masked_fill((torch.arange(3) > 1)[:, None], 0), {Carry.FACTOR}),
        (lambda x: torch.where((torch.arange(3) < 2)[:, None], x, 0.0), {Carry.FACTOR}),
        (lambda x: torch.where((torch.arange(3) < 2)[:, None], torch.zeros_like(x), x), {Carry.FACTOR}),
        (lambda x: x.mul_(2.0), {Carry.FACTOR}),
        (lambda x: x * x.new_empty(2, 1, 1).bernoulli_(0.5), {Carry.FACTOR}),
    ],
)
def test_stream_goes_on_through_what_treats_all_sources_alike(
    between: Callable[[Tensor], Tensor], kinds: set[Carry]
) -> None:
    _, found = chains_of(stream(ADDITIONS["x + f"], between))
    chain = longest(found)
    assert len(chain.additions) == 3
    carried = [step for addition in chain.additions[1:] for step in addition.carried]
    assert carried
    assert kinds <= {step.kind for step in carried} <= {*kinds, Carry.RESHAPE}


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x * x.sigmoid(),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
        lambda x: 1.0 / x,
        lambda x: x.clamp(-1, 1),
        lambda x: x.masked_fill(torch.arange(3)[:, None] > 1, 1.0),
        lambda x: x.view(2, 3, 2, WIDTH // 2).transpose(2, 3).reshape(2, 3, WIDTH),
        lambda x: x.flip(-1),
        lambda x: x.relu(),
        lambda x: x[:, :2],
    ],
)
def test_stream_ends_at_what_changes_features_or_values(between: Callable[[Tensor], Tensor]) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x + self.linear[0](self.norm[0](x))
        x = between(x)
        return x + F.linear(x, self.linear[0].weight[: x.shape[-1], : x.shape[-1]])

    _, found = chains_of(model)
    assert max(len(chain.additions) for chain in found) == 1


def test_subtraction_and_scaled_addition_are_no_steps_of_a_chain() -> None:
    _, found = chains_of(stream(lambda x, f: x - f))
    assert found == ()
    _, found = chains_of(stream(lambda x, f: torch.add(x, f, alpha=2)))
    assert found == ()


def test_addition_of_an_independent_value_starts_no_chain() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> Tensor:
        return self.linear[0](x) + self.linear[1](y) + y.sin() * 2

    _, found = chains_of(model, sample(), sample(seed=2))
    assert [chain for chain in found if chain.has_product] == []


def test_independent_addend_before_a_chain_belongs_to_its_root() -> None:
    """Token and position embeddings are summed before the first sublayer: that sum is s_0."""

    def model(self: Function, x: Tensor, positions: Tensor) -> Tensor:
        x = x + positions
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        return x

    trace, found = chains_of(model, sample(), sample(seed=2))
    chain = longest(found)
    assert len(chain.additions) == 3
    assert trace.ops[trace.values[chain.root].producer].name == "aten.add"


def test_independent_addend_in_the_middle_of_a_chain_is_a_write() -> None:
    def model(self: Function, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.linear[0](self.norm[0](x))
        x = x + positions
        return x + self.linear[1](self.norm[1](x))

    _, found = chains_of(model, sample(), sample(seed=2))
    assert [len(chain.additions) for chain in found] == [3]


def test_polynomial_has_no_matrix_product() -> None:
    """The tanh form of GELU adds to its own argument, as a sublayer does."""

    def model(self: Function, x: Tensor) -> Tensor:
        x = self.linear[0](x)
        return x + 0.04 * x**3 + 0.1 * x**5

    _, found = chains_of(model)
    assert [(len(chain.additions), chain.has_product) for chain in found] == [(2, False)]


def test_mask_added_in_every_layer_is_a_fork_and_no_stream() -> None:
    """Scores of every layer plus one mask: additions that share an operand, none of which continues another."""

    def model(self: Function, x: Tensor) -> Tensor:
        mask = x @ x.transpose(1, 2)
        for norm, linear in zip(self.norm, self.linear, strict=False):
            y = norm(x)
            scores = y @ y.transpose(1, 2)
            x = x + linear((scores + mask).softmax(-1) @ y)
        return x

    trace, found = chains_of(model)
    assert len(longest(found).additions) == 3
    others = [chain for chain in found if chain is not longest(found)]
    assert all(len(chain.additions) == 1 for chain in others)
    assert all(trace.values[chain.root].shape[-1] == 3 for chain in others)


def test_longest_continuation_is_the_chain_and_the_rest_are_forks() -> None:
    def model(self: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.linear[0](self.norm[0](x))
        side = x + self.linear[1](self.norm[1](x)).sin()
        for norm, linear in zip(self.norm[1:], self.linear[1:], strict=False):
            x = x + linear(norm(x))
        return x, side

    trace, found = chains_of(model)
    (chain,) = found
    assert len(chain.additions) == 3
    (fork,) = chain.forks
    assert trace.ops[fork].outputs[0] == trace.graph_outputs[1]
    assert fork not in [addition.op for addition in chain.additions]


def test_two_streams_of_one_model_are_two_chains() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        memory = self.norm[-1](x)
        for norm, linear in zip(self.norm, self.linear, strict=False):
            y = y + linear(norm(y) * memory)
        return y

    _, found = chains_of(model, sample(), sample(seed=2))
    assert [(len(chain.additions), chain.forks) for chain in found] == [(3, ()), (3, ())]


def test_state_added_to_itself_is_a_write_of_the_state() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x + self.linear[0](self.norm[0](x))
        x = x + x
        return x + self.linear[1](self.norm[1](x))

    _, found = chains_of(model)
    assert len(longest(found).additions) == 3


def test_root_added_again_is_a_write_of_the_root() -> None:
    """Looped models inject the embedding before every layer, weighted or as it is."""

    def model(self: Function, x: Tensor) -> Tensor:
        x = root = x.sinh()
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = 0.9 * x + 0.1 * root
            x = x + linear(norm(x)) + root
        return self.norm[-1](x)

    (chain,) = chains_of(model)[1]
    assert (len(chain.additions), chain.forks) == (9, ())


def test_factor_of_its_shape_is_told_from_the_stream_by_what_was_added_to_it() -> None:
    def model(self: Function, x: Tensor, mask: Tensor) -> Tensor:
        x = x.sinh()
        for k, (norm, linear) in enumerate(zip(self.norm, self.linear, strict=False)):
            x = x + linear(norm(x))
            x = mask * x if k else x * mask
        return self.norm[-1](x)

    (chain,) = chains_of(model, sample(), sample(seed=2))[1]
    assert len(chain.additions) == 3


OTHER_SUMS: dict[str, Step] = {
    "x - f": lambda x, f: x - f,
    "alpha": lambda x, f: torch.add(x, f, alpha=2),
    "lerp": lambda x, f: torch.lerp(x, f, 0.5),
    "addcmul": lambda x, f: torch.addcmul(x, f, f),
    "stack and sum": lambda x, f: torch.stack([x, f]).sum(0),
    "cat and sum": lambda x, f: torch.cat([x[None], f[None]]).sum(0),
    "stack and mean": lambda x, f: torch.stack([x, f], 1).mean(1),
    "index_add": lambda x, f: x.index_add(1, torch.arange(3), f),
}


@pytest.mark.parametrize("spelling", OTHER_SUMS)
def test_sublayer_added_in_another_way_is_seen(spelling: str) -> None:
    trace = traced(stream(OTHER_SUMS[spelling]))
    chains = search_chains(trace)
    assert chains.candidates == ()
    assert len(chains.other_sums) == 3
    assert chains.sublayer_sums == chains.other_sums


@pytest.mark.parametrize("batched", [False, True])
def test_product_with_an_addend_is_seen(batched: bool) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            weight = linear.weight
            if batched:
                x = torch.baddbmm(x, norm(x), weight.expand(2, WIDTH, WIDTH))
            else:
                x = torch.addmm(x.view(-1, WIDTH), norm(x).view(-1, WIDTH), weight).view(2, 3, WIDTH)
        return self.norm[-1](x)

    assert len(search_chains(traced(model)).other_sums) == 3


def test_sum_with_what_is_no_sublayer_is_not_seen() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.linear[0](centred) - self.linear[1].bias

    assert search_chains(traced(model)).other_sums == frozenset()


def test_addition_that_nothing_depends_on_is_no_step() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            _ = x + linear(norm(x)).sin()
            x = x + linear(norm(x))
        return self.norm[-1](x)

    (chain,) = chains_of(model)[1]
    assert (len(chain.additions), chain.forks) == (3, ())


def test_shape_alone_is_no_dependence() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return x + torch.ones_like(x).sin()

    assert chains_of(model)[1] == ()


def test_broadcast_branch_is_a_write_and_a_broadcast_state_is_not() -> None:
    def grows(self: Function, x: Tensor) -> Tensor:
        return x + self.linear[0](x).unsqueeze(0).expand(4, 2, 3, WIDTH)

    def shrinks(self: Function, x: Tensor) -> Tensor:
        return x + self.linear[0](x).mean(1, keepdim=True)

    assert chains_of(grows)[1] == ()
    assert len(longest(chains_of(shrinks)[1]).additions) == 1


def test_every_kind_of_product_counts_as_a_matrix_product() -> None:
    def model(self: Function, x: Tensor) -> tuple[Tensor, ...]:
        convolved = F.conv1d(x, x[:, :, :1])
        heads = x.float().unsqueeze(1)
        attended = F.scaled_dot_product_attention(heads, heads, heads)
        return x[0] @ x[0].T, x @ x.transpose(1, 2), x[0] @ x[0, 0], convolved, attended, x.sin()

    trace = traced(model)
    products = {op.name for op in trace.ops if is_matrix_product(op)}
    assert {"aten.mm", "aten.bmm", "aten.mv", "aten.convolution"} <= products
    assert any("attention" in name for name in products)
    assert "aten.sin" not in products


class Tower(nn.Module):
    """One linear layer, applied again and again behind a norm."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.weight = nn.Parameter(torch.eye(WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.layers):
            x = x + F.layer_norm(x, (WIDTH,)) @ self.weight
        return x


class CountingSearch(_Search):
    """Counts how many starting points are held for all values together."""

    held = 0
    largest = 0

    def follow_dependence(self, op: object) -> None:
        super().follow_dependence(op)
        sizes = [len(self.depends_on.get(value, ())) for value in op.outputs]
        CountingSearch.held += sum(sizes)
        CountingSearch.largest = max([CountingSearch.largest, *sizes])


def starting_points(layers: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, Candidate]:
    trace = traced(Tower(layers))
    CountingSearch.held = CountingSearch.largest = 0
    monkeypatch.setattr("attnres_passes.analyses.chains._Search", CountingSearch)
    chain = longest(find_chains(trace))
    return CountingSearch.held, CountingSearch.largest, chain


def test_search_holds_a_number_of_starting_points_that_is_linear_in_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, widest_of_few, short = starting_points(10, monkeypatch)
    many, widest_of_many, long = starting_points(100, monkeypatch)
    assert (len(short.additions), len(long.additions)) == (10, 100)
    assert widest_of_many == widest_of_few <= 4
    assert few > 0
    assert many <= 11 * few


def steps_looked_at(layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    trace, counted = traced(Tower(layers)), []

    def counting(*args: object) -> object:
        counted.append(args)
        return carry_step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("attnres_passes.analyses.chains.carry_step", counting)
    search_chains(trace)
    return len(counted)


def test_search_looks_at_a_number_of_steps_that_is_linear_in_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = steps_looked_at(10, monkeypatch), steps_looked_at(100, monkeypatch)
    assert few > 0
    assert many <= 11 * few
