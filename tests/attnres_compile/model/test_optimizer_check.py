"""Steps of optimizers that hold parameters of prepared models, of each way in which such a step can go wrong."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

import attnres_compile as ac
from attnres_compile.model import errors, optimizer_check, optimizer_links, parameters
from tests.end_to_end.models import PreNorm, tokens

PLAIN = "has run plain since the last step"
NO_GRADIENTS = "whose AttnRes parameters have no gradients"
WITHOUT = "without its 6 AttnRes parameters"


@pytest.fixture(autouse=True)
def no_other_models() -> Iterator[None]:
    """Models of other tests that are still alive would be checked, too."""
    parameters._prepared.clear()
    yield
    parameters._prepared.clear()


def prepared(model: nn.Module | None = None) -> nn.Module:
    """A prepared model that is compiled when it is first run."""
    model = PreNorm() if model is None else model
    ac.prepare(model, (tokens(),), block_size=1)
    model.compile(backend="attnres", options={"inner": "eager"})
    return model


def run(model: nn.Module, loss: Callable[[Tensor], Tensor] = Tensor.sum) -> None:
    """Forward and backward of the rewrite."""
    loss(model(tokens())).backward()


def run_plain(model: nn.Module, count: str = "plain") -> None:
    """The gradients that a run of the model as it was leaves. count: what it counts as; "" for nothing."""
    for parameter in others(model):
        parameter.grad = torch.ones_like(parameter)
    if count:
        calls = model.attnres.calls
        setattr(calls, count, getattr(calls, count) + 1)


def others(model: nn.Module) -> list[nn.Parameter]:
    own = set(map(id, model.attnres.parameters()))
    return [parameter for parameter in model.parameters() if id(parameter) not in own]


def refused(optimizer: Optimizer, message: str) -> None:
    """The step raises, and steps nothing."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.clone() for parameter in held]
    with pytest.raises(errors.OptimizerError, match=message):
        optimizer.step()
    assert all(map(torch.equal, held, before))


# Runs that were plain by mistake.


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_plain_run_is_an_error_at_any_step(steps: int) -> None:
    model = prepared()
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        run(model)
        optimizer.step()
    assert model.attnres.calls.rewritten == steps
    optimizer.zero_grad()
    run_plain(model)
    refused(optimizer, PLAIN)


@pytest.mark.parametrize("left", ["zeros", "of the last run", "beside a run in order"])
def test_gradients_do_not_excuse_a_plain_run(left: str) -> None:
    model = prepared()
    optimizer = SGD(model.parameters(), lr=0.1)
    run(model)
    optimizer.step()
    if left == "zeros":
        optimizer.zero_grad(set_to_none=False)
    elif left == "beside a run in order":
        run(model)
    run_plain(model)
    refused(optimizer, PLAIN)


def test_the_error_stays_until_the_model_runs_in_its_rewrite() -> None:
    model = prepared()
    optimizers = [SGD(group, lr=0.1) for group in (model.attnres.parameters(), others(model))]
    run(model)
    run_plain(model)
    for optimizer in [*optimizers, *optimizers, SGD(model.parameters(), lr=0.1)]:
        refused(optimizer, PLAIN)
    model.zero_grad()
    run(model)
    for optimizer in [*optimizers, SGD(model.parameters(), lr=0.1)]:
        optimizer.step()
    run_plain(model)
    refused(optimizers[1], PLAIN)


def test_a_plain_run_without_gradients_steps_nothing() -> None:
    model = prepared()
    optimizer = SGD(model.parameters(), lr=0.1)
    run_plain(model)
    optimizer.zero_grad()
    optimizer.step()
    run(model)
    optimizer.step()
    SGD(model.parameters(), lr=0.1).step()  # is not blamed for what another one was not


@pytest.mark.parametrize("make", [lambda held: SGD(held, lr=0.1), lambda held: LBFGS(held, max_iter=2)])
def test_a_closure_runs_the_model_inside_the_step(make: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    model = prepared()
    optimizer = make(list(model.parameters()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens()).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    model.attnres.calls.plain += 1
    with pytest.raises(errors.OptimizerError, match=PLAIN):
        optimizer.step(closure)


# Runs that were plain on purpose.


def test_the_plain_model_is_trained_on_purpose() -> None:
    model = prepared()
    for optimizer in (SGD(model.parameters(), lr=0.1), SGD(others(model), lr=0.1)):
        for _ in range(3):
            optimizer.zero_grad()
            run_plain(model, "plain_on_purpose")
            optimizer.step()
    run(model)
    SGD(model.parameters(), lr=0.1).step()


def test_an_optimizer_for_the_plain_model_does_not_do_for_the_rewrite() -> None:
    model = prepared()
    optimizer = SGD(others(model), lr=0.1)
    run_plain(model, "plain_on_purpose")
    optimizer.step()
    run(model)
    refused(optimizer, WITHOUT)


# Gradients that no counted run has made.


def test_gradients_tell_where_nothing_was_counted() -> None:
    model = prepared()
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        run_plain(model, count="")
        refused(optimizer, NO_GRADIENTS)
        run(model)
        optimizer.step()
        optimizer.step()  # with the same gradients
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # of a copy elsewhere
    optimizer.step()


def test_a_loss_need_not_depend_on_the_stream() -> None:
    class TwoHeads(PreNorm):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Linear(3, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).detach().sum() + self.auxiliary.weight.sum()

    model = prepared(TwoHeads())
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        run(model)
        optimizer.step()
    assert all(parameter.grad is None for parameter in model.attnres.parameters())


def test_one_backward_serves_several_optimizers_and_steps() -> None:
    """As sharpness-aware steps, scaled gradients and micro-batches have it."""
    model = prepared()
    first, second = SGD(model.attnres.parameters(), lr=0.1), SGD(others(model), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        run(model)
        run(model)
        first.step()
        first.zero_grad()
        second.step()
        run(model, lambda logits: scaler.scale(logits.mean()))
        for optimizer in (second, first):
            scaler.step(optimizer)
        scaler.update()


def test_gradients_of_another_prepared_model_that_shares_parameters() -> None:
    model, other = prepared(), PreNorm()
    other.head = model.head
    prepared(other)
    optimizer = SGD([*model.parameters(), *other.attnres.parameters()], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        run(model)
        optimizer.step()


def test_states_are_made_with_gradients_of_zeros() -> None:
    model = prepared()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizers = [Adam(matrices), Adam(rest)]
    get_optimizer_state_dict(model, optimizers)
    assert optimizers[0].state[model.head.weight]


# Optimizers that do not hold the AttnRes parameters.


def test_an_optimizer_without_the_parameters() -> None:
    model = PreNorm()
    optimizer = SGD(model.parameters(), lr=0.1)
    prepared(model)
    run(model)
    refused(optimizer, r"add_param_group")
    optimizer.add_param_group({"params": list(model.attnres.parameters()), "weight_decay": 0.0})
    optimizer.step()
    assert model.attnres.streams[0].reads[0].query.abs().max() > 0


def test_two_optimizers_that_share_a_model_are_in_order() -> None:
    model = prepared()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizers = [SGD(group, lr=0.1) for group in (matrices, rest)]
    for _ in range(3):
        run(model)
        for optimizer in optimizers:
            optimizer.step()


def test_an_optimizer_of_a_part_with_none_beside_it() -> None:
    model = prepared()
    optimizer = SGD([model.head.weight], lr=0.1)
    run(model)
    optimizer.step()
    run(model)
    refused(optimizer, WITHOUT)


def test_one_optimizer_a_parameter_that_steps_in_the_backward() -> None:
    model = prepared()
    for parameter in model.parameters():
        optimizer = SGD([parameter], lr=0.1)
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    for _ in range(3):
        run(model)


def prepare_again(model: nn.Module) -> None:
    ac.unprepare(model)
    torch._dynamo.reset()
    prepared(model)


def make_empty(model: nn.Module) -> None:
    model.attnres.to(device="meta").to_empty(device="cpu")
    for read in model.attnres.streams[0].reads:
        nn.init.zeros_(read.query)
        nn.init.ones_(read.key_norm.weight)


def assign_one_by_one(model: nn.Module) -> None:
    for read in model.attnres.streams[0].reads:
        read.query = nn.Parameter(read.query.detach().clone())
        read.key_norm.weight = nn.Parameter(read.key_norm.weight.detach().clone())


@pytest.mark.parametrize("replace", [prepare_again, make_empty, assign_one_by_one])
@pytest.mark.parametrize("beside", [False, True])
def test_parameters_that_were_replaced(replace: Callable[[nn.Module], None], beside: bool) -> None:
    """An optimizer that held those before does not do, neither by itself nor for another one."""
    model = prepared()
    held = [list(model.attnres.parameters()), others(model)] if beside else [list(model.parameters())]
    optimizers = [SGD(group, lr=0.1) for group in held]
    for _ in range(2):
        run(model)
        for optimizer in optimizers:
            optimizer.step()
    replace(model)
    model.zero_grad()
    run(model)
    refused(optimizers[-1], WITHOUT)
    optimizers[-1].add_param_group({"params": list(model.attnres.parameters())})
    optimizers[-1].step()


def test_groups_that_are_replaced_or_shrink() -> None:
    model = prepared()
    optimizer = SGD([nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()], lr=0.1)
    optimizer.step()
    run(model)
    optimizer.step()  # holds nothing of the model
    optimizer.param_groups[0]["params"] = list(model.parameters())
    optimizer.step()
    run_plain(model)
    refused(optimizer, PLAIN)
    model.zero_grad()
    run(model)
    optimizer.param_groups[0]["params"] = others(model)
    refused(optimizer, WITHOUT)


@pytest.mark.parametrize("frozen", ["all", "queries"])
def test_frozen_parameters_need_no_optimizer(frozen: str) -> None:
    model = prepared()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("head" in name or (frozen == "queries" and "key_norm" in name))
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(3):
        run(model)
        optimizer.step()
    if frozen == "all":
        model.attnres.requires_grad_(True)
        torch._dynamo.reset()
        run(model)
        refused(optimizer, WITHOUT)


# Models and optimizers that come and go.


def test_a_teacher_is_run_and_never_stepped() -> None:
    model = prepared()
    optimizer = SGD(model.parameters(), lr=0.1)
    teacher = copy.deepcopy(model)
    parameters.note_prepared(teacher)
    for _ in range(2):
        run(model)
        teacher.attnres.calls.plain += 1
        optimizer.step()
    assert (model.attnres.calls.rewritten, teacher.attnres.calls.rewritten) == (2, 0)


@pytest.mark.parametrize("stays", ["the optimizer", "another optimizer"])
def test_nothing_is_kept_alive(stays: str) -> None:
    gc.collect()
    other = SGD([nn.Parameter(torch.ones(()))], lr=0.1)
    other.step()
    before = len(optimizer_links._watched)  # models of other tests of this process may be alive
    model = prepared()
    optimizer = SGD(list(model.parameters()), lr=0.1)
    run(model)
    optimizer.step()
    other.step()
    assert len(optimizer_links._watched) == before + 1
    gone = [weakref.ref(each) for each in (model, model.attnres, next(model.attnres.parameters()))]
    torch._dynamo.reset()
    optimizer.param_groups[0]["params"].clear()
    del model
    if stays == "another optimizer":
        gone.append(weakref.ref(optimizer))
        del optimizer
    gc.collect()
    assert not any(reference() is not None for reference in gone)
    assert len(optimizer_links._watched) <= before
    other.step()


def test_a_model_in_the_place_of_another_is_checked_anew() -> None:
    """It may have the id of the one that is gone, and the optimizer as many parameters as before."""
    model = prepared()
    optimizer = SGD([*model.parameters()], lr=0.1)
    for _ in range(5):
        run(model)
        optimizer.step()
        torch._dynamo.reset()
        optimizer.param_groups[0]["params"].clear()
        model.__dict__.clear()
        model.__init__()
        prepared(model)
        own = [nn.Parameter(parameter.detach().clone()) for parameter in model.attnres.parameters()]
        optimizer.param_groups[0]["params"] = [*others(model), *own]
        run(model)
        refused(optimizer, WITHOUT)
        optimizer.param_groups[0]["params"] = list(model.parameters())


def test_without_prepared_models_an_optimizer_is_not_looked_at() -> None:
    optimizer_check._before_step(None, (), {})  # type: ignore[arg-type]


# Steps that are compiled, or fused.


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_compiled_steps_are_checked_and_compile_as_before(options: dict[str, bool]) -> None:
    """A step that is compiled may be capturable on a CPU, too."""
    model = prepared()
    optimizer = AdamW(model.parameters(), capturable="fused" not in options, **options)
    graphs = CompileCounter()
    step = torch.compile(lambda: optimizer.step(), backend=graphs)
    for _ in range(3):
        optimizer.zero_grad()
        run(model)
        step()
    assert graphs.frame_count == (0 if "fused" in options else 1)
    run_plain(model)
    with pytest.raises(errors.OptimizerError, match=PLAIN):
        step()


def test_a_step_in_one_graph_stays_in_one() -> None:
    class Descent(Optimizer):
        @torch.no_grad()
        def step(self) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=0.1)

    model = prepared()
    optimizer = Descent(model.parameters(), {})
    run(model)
    before = model.head.weight.clone()
    torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    torch.testing.assert_close(model.head.weight, before - 0.1 * model.head.weight.grad)
    run_plain(model)
    refused(optimizer, PLAIN)
