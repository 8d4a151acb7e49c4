"""Ways to call a prepared model, one function each: whatever they give is the rewrite, or they raise.

A way gets a prepared model that was not compiled yet, and the input ``[B, T, d]``; it returns what some call of the
model gave, as a tensor of the model's output, or as the tuple of that and the model whose parameters it went through.
Here are compilations, functions and transforms around a model; ``ways_of_change`` has what happens to a model first.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import attnres_compile as ac
from attnres_compile.compile.backend import attnres
from tests.end_to_end.guarded_model import EAGER, Net, in_place

Way = Callable[["Net", Tensor], Any]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


@way
def compiled_in_place(model: Net, x: Tensor) -> Any:
    return in_place(model)(x)


@way
def wrapper(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend="attnres", options=EAGER)(x)


@way
def wrapper_of_the_whole_graph(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend="attnres", options=EAGER, fullgraph=True)(x)


@way
def method_of_the_wrapper(model: Net, x: Tensor) -> Any:
    compiled = torch.compile(model, backend="attnres", options=EAGER)
    compiled(x)
    return compiled.generate(x)


@way
def method_after_compiling_in_place(model: Net, x: Tensor) -> Any:
    return in_place(model).generate(x)


@way
def module_behind_the_wrapper(model: Net, x: Tensor) -> Any:
    torch.compile(model, backend="attnres", options=EAGER)(x)
    return model(x)


@way
def never_compiled(model: Net, x: Tensor) -> Any:
    return model(x)


@way
def forward_past_the_compiled_call(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return model.forward(x)


@way
def compiled_forward(model: Net, x: Tensor) -> Any:
    return torch.compile(model.forward, backend="attnres", options=EAGER)(x)


@way
def compiled_forward_of_another_backend(model: Net, x: Tensor) -> Any:
    return torch.compile(model.forward, backend="eager")(x)


@way
def stance_of_eager(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    with torch.compiler.set_stance("force_eager"):
        return model(x)


@way
def stance_of_no_recompiles(model: Net, x: Tensor) -> Any:
    in_place(model, dynamic=False)(x[:1])
    with torch.compiler.set_stance("eager_on_recompile"):
        return model(x)


@way
def disabled_call(model: Net, x: Tensor) -> Any:
    return torch.compiler.disable(in_place(model))(x)


@way
def disabled_function_around(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.compiler.disable(lambda value: model(value))(x)


@way
def dynamo_off(model: Net, x: Tensor) -> Any:
    in_place(model)
    with torch._dynamo.config.patch(disable=True):
        return model(x)


@way
def another_backend(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend="eager")(x)


@way
def another_backend_in_place(model: Net, x: Tensor) -> Any:
    model.compile(backend="aot_eager")
    return model(x)


@way
def backend_as_a_partial(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend=functools.partial(attnres, options=EAGER))(x)


@way
def backend_as_a_function(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend=attnres, options=EAGER)(x)


@way
def backend_that_wraps_ours(model: Net, x: Tensor) -> Any:
    @functools.wraps(attnres)
    def mine(gm: Any, inputs: Any) -> Any:
        return attnres(gm, inputs, options=EAGER)

    return torch.compile(model, backend=mine)(x)


@way
def backend_that_hides_ours(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend=lambda gm, inputs: attnres(gm, inputs, options=EAGER))(x)


@way
def step_of_another_backend(model: Net, x: Tensor) -> Any:
    in_place(model)
    step = torch.compile(lambda value: model(value) + 0, backend="aot_eager")
    step(x)
    return step(x)


@way
def step_of_another_backend_around_a_plain_module(model: Net, x: Tensor) -> Any:
    return torch.compile(lambda value: model(value) + 0, backend="aot_eager")(x)


@way
def whole_step_of_another_backend(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.compile(lambda value: model(value) + 0, backend="aot_eager", fullgraph=True)(x)


@way
def step_of_ours(model: Net, x: Tensor) -> Any:
    return torch.compile(lambda value: model(value) + 0, backend="attnres", options=EAGER, fullgraph=True)(x)


@way
def step_of_ours_around_a_compiled_module(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.compile(lambda value: model(value) + 0, backend="attnres", options=EAGER)(x)


class Around(nn.Module):
    """A model with a temperature around another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside, self.temperature = model, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) * self.temperature


@way
def module_around(model: Net, x: Tensor) -> Any:
    return Around(in_place(model))(x)


@way
def module_around_compiled(model: Net, x: Tensor) -> Any:
    return in_place(Around(model))(x)


@way
def module_around_compiled_by_another_backend(model: Net, x: Tensor) -> Any:
    around = Around(model)
    around.compile(backend="aot_eager")
    return around(x)


@way
def data_parallel(model: Net, x: Tensor) -> Any:
    return nn.DataParallel(in_place(model))(x)


@way
def vmap(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return torch.func.vmap(model)(x.unsqueeze(0))[0]


@way
def call_after_vmap(model: Net, x: Tensor) -> Any:
    in_place(model)
    with contextlib.suppress(ac.AttnResError):
        torch.func.vmap(model)(x.unsqueeze(0))
    return model(x)


def function_of_ours_with_a_transform(model: Net) -> Callable[[Tensor], Any]:
    return torch.compile(lambda given: torch.func.vjp(model, given)[0], backend="attnres", options=EAGER)


@way
def transform_in_a_function_of_ours(model: Net, x: Tensor) -> Any:
    return function_of_ours_with_a_transform(model)(x)


@way
def call_after_a_transform_in_a_function_of_ours(model: Net, x: Tensor) -> Any:
    with contextlib.suppress(ac.AttnResError):
        function_of_ours_with_a_transform(model)(x)
    return in_place(model)(x)


@way
def functional_gradient(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    parameters = dict(model.named_parameters())
    return torch.func.vjp(lambda given: torch.func.functional_call(model, given, (x,)), parameters)[0]


@way
def functional_call(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return torch.func.functional_call(model, dict(model.named_parameters()), (x,))


@way
def jvp(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))[0]


@way
def dual_numbers(model: Net, x: Tensor) -> Any:
    in_place(model)
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).primal


@way
def export(model: Net, x: Tensor) -> Any:
    return torch.export.export(model, (x,), strict=False).module()(x)


@way
def strict_export(model: Net, x: Tensor) -> Any:
    return torch.export.export(model, (x,), strict=True).module()(x)


@way
def torchscript(model: Net, x: Tensor) -> Any:
    return torch.jit.trace(model, (x,))(x)


@way
def symbolic_trace(model: Net, x: Tensor) -> Any:
    return torch.fx.symbolic_trace(model)(x)


@way
def many_shapes(model: Net, x: Tensor) -> Any:
    in_place(model, dynamic=False)
    for length in range(2, 102):
        result = model(x[:, :1].expand(-1, length, -1))
    return result


@way
def part_by_itself(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return model.head(model.body(x))


@way
def part_compiled(model: Net, x: Tensor) -> Any:
    in_place(model.body)
    return model(x)


@way
def blocks_compiled(model: Net, x: Tensor) -> Any:
    for block in model.body.blocks:
        in_place(block)
    return model(x)


@way
def checkpoint_around_the_model(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)


@way
def autocast(model: Net, x: Tensor) -> Any:
    in_place(model)
    with torch.autocast("cpu", enabled=False):
        return model(x)


@way
def another_thread(model: Net, x: Tensor) -> Any:
    in_place(model)
    result: list[Any] = []

    def call(enabled: bool) -> None:
        with torch.set_grad_enabled(enabled):
            result.append(model(x))

    thread = threading.Thread(target=call, args=(torch.is_grad_enabled(),))
    thread.start()
    thread.join()
    return result[0]


@way
def reentrant_checkpoint_in_training(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.utils.checkpoint.checkpoint(model, x.requires_grad_(torch.is_grad_enabled()), use_reentrant=True)
