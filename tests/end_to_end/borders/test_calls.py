"""What calls of a model in parts may be, against the equations in eager: no call takes the sources of another."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from attnres_compile.model.border import known_states
from attnres_compile.model.errors import BorderError
from tests.end_to_end.guarded_model import EAGER, WIDTH, Net, by_hand, prepared

ATOL = {"atol": 1e-10, "rtol": 0}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    gc.collect()
    before = len(known_states._states)
    yield
    gc.collect()
    assert len(known_states._states) <= before, "a state is kept alive"


def example(seed: int = 2) -> Tensor:
    return torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_block(model: Net) -> Net:
    for block in model.body.blocks:
        block.compile(backend="attnres", options=EAGER)
    return model


def whole(model: Net) -> Net:
    model.compile(backend="attnres", options=EAGER)
    return model


def show(number: int, x: Tensor) -> None:
    print(number, float(x.detach().norm()))


def show_one(number: int, x: Tensor) -> None:
    if number == 1:
        print(float(x.detach().sum()))


@torch.compiler.disable
def disabled(number: int, x: Tensor) -> None:
    assert torch.isfinite(x).all()


BETWEEN: dict[str, Callable[[int, Tensor], None]] = {"print": show, "item once": show_one, "disabled": disabled}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters()}


def assert_by_hand(model: Net, *inputs: Tensor) -> None:
    """Outputs and every gradient, of one backward over all inputs."""
    outputs = [model(x) for x in inputs]
    wanted = [by_hand(model, x) for x in inputs]
    for output, expected in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(output, expected, **ATOL)
    expected_gradients = gradients(model, sum(one.square().sum() for one in wanted))
    found = gradients(model, sum(one.square().sum() for one in outputs))
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found[name], gradient, **ATOL)


@pytest.mark.parametrize("cut", [per_block, whole])
@pytest.mark.parametrize("between", BETWEEN)
def test_python_between_the_layers(cut: Callable[[Net], Net], between: str) -> None:
    model = prepared(example())
    model.body.between = BETWEEN[between]
    assert_by_hand(cut(model), example())


def test_gradients_of_what_python_makes_of_a_state() -> None:
    """A loss on the running sum between the layers reaches all that it is the sum of."""
    model, losses = per_block(prepared(example())), []
    model.body.between = lambda number, x: losses.append(x.square().mean()) if number == 1 else None
    output = model(example())
    (output.sum() + 3 * losses[0]).backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()

    def state_after_two(x: Tensor) -> Tensor:
        body, reads = model.body, iter(model.attnres.streams[0].reads)
        sources = [body.embedding(x)]
        for number, block in enumerate(body.blocks[:2]):
            value = sources[0]
            if number:
                one = next(reads)
                stacked = torch.stack(sources)
                keys = stacked * (stacked.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * one.key_norm.weight
                value = ((keys @ one.query).softmax(0).unsqueeze(-1) * stacked).sum(0)
            sources.append(block.mlp(block.norm(value)))
        return sum(sources)

    (by_hand(model, example()).sum() + 3 * state_after_two(example()).square().mean()).backward()
    for name, one in model.named_parameters():
        torch.testing.assert_close(found[name], one.grad, **ATOL)


def test_two_forwards_before_a_backward() -> None:
    assert_by_hand(per_block(prepared(example())), example(2), example(3))


def test_gradients_accumulate() -> None:
    model = per_block(prepared(example()))
    for seed in (2, 3):
        model(example(seed)).square().sum().backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters()}
    expected = gradients(model, sum(by_hand(model, example(seed)).square().sum() for seed in (2, 3)))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **ATOL)


def test_an_exception_between() -> None:
    model = per_block(prepared(example()))

    def stop(number: int, x: Tensor) -> None:
        if number == 1:
            raise KeyError(number)

    model.body.between = stop
    with pytest.raises(KeyError):
        model(example(3))
    model.body.between = None
    assert_by_hand(model, example(2))


def test_without_gradients() -> None:
    model = per_block(prepared(example()))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model(example()), by_hand(model, example()), **ATOL)
    assert_by_hand(model, example())


def test_other_sizes() -> None:
    model = per_block(prepared(example()))
    for tokens in (3, 5, 4, 7):
        x = torch.randn(2, tokens, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(model(x), by_hand(model, x), **ATOL)


def test_threads() -> None:
    model = per_block(prepared(example()))
    model(example())
    found: dict[int, Tensor] = {}

    def run(seed: int) -> None:
        for _ in range(5):
            found[seed] = model(example(seed)).detach()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, output in found.items():
        torch.testing.assert_close(output, by_hand(model, example(seed)).detach(), **ATOL)


@pytest.mark.parametrize("stride", [1, 2])
def test_checkpoints_around_compiled_layers(stride: int) -> None:
    model = per_block(prepared(example()))
    for number, block in enumerate(model.body.blocks):
        if number % stride == 0:
            compiled = block._compiled_call_impl
            block._compiled_call_impl = lambda *args, call=compiled: checkpoint(call, *args, use_reentrant=False)
    assert_by_hand(model, example())
    for block in model.body.blocks:
        block._compiled_call_impl = None


def test_nothing_is_kept_after_the_backward() -> None:
    """The memory of every source goes with the graph of the loss."""
    model, states = per_block(prepared(example())), []
    model.body.between = lambda number, x: states.append(weakref.ref(x.untyped_storage()))
    loss = model(example()).square().sum()
    loss.backward()
    del loss
    gc.collect()
    assert len(states) == 4
    assert not any(state() is not None for state in states)


def test_a_layer_that_is_used_twice() -> None:
    """One graph of Dynamo's at two places of the stream."""
    torch.manual_seed(0)
    model = Net().double()
    model.body.blocks[2] = model.body.blocks[0]
    ac.prepare(model, (example(),), block_size=1)
    with torch.no_grad():
        for number, one in enumerate(model.attnres.parameters()):
            one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
    assert_by_hand(per_block(model), example())


def test_queries_that_are_trained_after_they_were_frozen_get_gradients() -> None:
    model = prepared(example())
    model.attnres.requires_grad_(False)
    per_block(model)(example()).square().sum().backward()
    model.attnres.requires_grad_(True)
    assert_by_hand(model, example())


def test_parts_of_an_earlier_preparation_do_not_run() -> None:
    model = per_block(prepared(example()))
    model(example())
    added = model.attnres
    ac.unprepare(model)
    ac.prepare(model, (example(),), block_size=1)
    assert model.attnres is not added
    with torch.no_grad():
        for number, one in enumerate(model.attnres.parameters()):
            one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
    assert_by_hand(model, example())


@pytest.mark.parametrize("place", ["norm", "body"])
def test_a_module_that_was_replaced_after_a_call_is_read_by(place: str) -> None:
    """By itself, and with its parent: what was found below the model is looked for again."""
    model = per_block(prepared(example()))
    model(example())
    if place == "norm":
        model.body.norm = nn.LayerNorm(WIDTH, dtype=torch.float64)
    else:
        body = type(model.body).__new__(type(model.body))
        nn.Module.__init__(body)
        body.__dict__.update(model.body.__dict__ | {"_modules": dict(model.body._modules)})
        body.norm = nn.LayerNorm(WIDTH, dtype=torch.float64)
        model.body = body
    with torch.no_grad():
        model.body.norm.weight.normal_()
    assert_by_hand(model, example())
    assert_by_hand(per_block(copy.deepcopy(model)), example())


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda x: x.mul_(2.0),
    "through a view": lambda x: x.view(-1)[:1].zero_(),
    "by its data": lambda x: x.detach().add_(1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_python_changes_is_an_error(change: str) -> None:
    """The running sum holds the root as it was; blocks that are compiled by themselves would be given the new one."""
    model, roots = per_block(prepared(example())), []
    model.body.embedding.register_forward_hook(lambda module, args, output: roots.append(output))

    def between(number: int, x: Tensor) -> None:
        if number == 1:
            with torch.no_grad():
                CHANGES[change](roots[-1])

    model.body.between = between
    with torch.no_grad(), pytest.raises(BorderError, match="changed in place"):
        model(example())
    roots.clear()
